"""A run from its settings to its report: wait for data, step, log, evaluate, save, in that order."""

import contextlib
import dataclasses
import logging
import time
from typing import Any

import jax
import numpy as np

from clip_jax.config import TrainConfig
from clip_jax.config_io import run_settings
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import Batches, eval_batches, train_batches
from clip_jax.distributed import initialize
from clip_jax.distributed.failures import failing_together, together
from clip_jax.distributed.multihost import allgather_json
from clip_jax.distributed.preemption import Preemption
from clip_jax.distributed.process_logs import process_logs
from clip_jax.distributed.watchdog import Watchdog
from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.suite import Evaluators, best_direction, headlines
from clip_jax.models.flops import training_flops
from clip_jax.redaction import redact
from clip_jax.runs import provenance
from clip_jax.runs.bad_samples import take_account
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.goodput import Goodput
from clip_jax.runs.logger import Progress
from clip_jax.runs.report.page import write_report
from clip_jax.runs.results import save_evaluation, save_snapshot
from clip_jax.training import run_record
from clip_jax.training.prefetch import Prefetch
from clip_jax.training.profiling import Profile
from clip_jax.training.setup import Setup, prepare
from clip_jax.training.state import FROZEN, TrainState
from clip_jax.training.step import abstract_batch, jit_train_step

log = logging.getLogger(__name__)

SNAPSHOT_PAIRS = 48  # of the similarity matrix in the report
COMPILE_SECONDS = 3600.0  # that compiling may take beyond health.hang_seconds


class TooManySkipped(RuntimeError):
    """Step after step had a loss or a gradient that could not be used."""


@together
def train(cfg: TrainConfig) -> int:
    """Train, or go on with the run that is in `cfg.workdir`.

    Returns:
      0 at the end of the run; else what the process should exit with so that a launcher starts
      it again (`RETRY_EXIT_CODE`) or does not (Ctrl-C).

    Raises:
      ValueError, FileNotFoundError: a setting or file at fault.
      TooManySkipped: the training has broken down.
      SaveFailed: checkpoints could not be written for too long.
    """
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(RunDirectory(cfg.workdir, main=main))
        initialize.barrier("the run directory is open", cfg.distributed.timeout_seconds)
        stack.enter_context(process_logs(run.path, is_local=run.is_local))
        goodput = stack.enter_context(Goodput(run.path / "goodput.json", write=main))
        preemption = stack.enter_context(Preemption())
        stacks = run.path / "stacks.txt" if run.is_local else None
        watchdog = stack.enter_context(Watchdog(cfg.health.hang_seconds, stacks))
        with watchdog.allow("preparing", extra_seconds=COMPILE_SECONDS):
            setup = prepare(cfg, run)
            run_record.check_resume(setup, run)
            limit_s = cfg.health.hang_seconds + COMPILE_SECONDS
            initialize.barrier("all is prepared", limit_s)  # nobody reads what is written below
            checkpoints = stack.enter_context(
                Checkpoints(run.checkpoints, cfg.checkpoint, better=best_direction(cfg))
            )
            trainer = Trainer(setup, run, checkpoints, goodput, preemption, watchdog)
            trainer.restore_or_start()
            run_record.write(setup, run)
        with failing_together():  # before the files above are closed, which waits for the others
            return trainer.run_to_the_end()


@dataclasses.dataclass
class Trainer:
    """The parts that work together, and the state that they hand to each other."""

    setup: Setup
    run: RunDirectory
    checkpoints: Checkpoints
    goodput: Goodput
    preemption: Preemption
    watchdog: Watchdog
    state: TrainState | None = None
    measured: bool = False  # whether the restored state was evaluated before it was saved
    ledger: dict | None = None
    evaluator: Evaluators | None = None
    progress: Progress | None = None
    profile: Profile | None = None
    pending: tuple[int, dict] | None = None  # a step whose numbers are still on the devices

    def restore_or_start(self):
        """The newest intact checkpoint, or step 0."""
        restored = self.checkpoints.restore(self.setup.abstract_state)
        if restored is None:
            self.state = self.setup.new_state()
            self.goodput.resumed_from(None)
            self.run.rewind_metrics(0)
            return
        self.state = restored.state
        self.measured = bool(restored.metadata["metrics"])
        self.ledger = take_account(restored.metadata.get("ledgers", []))
        self.goodput.resumed_from(restored.metadata.get("goodput"))
        self.run.rewind_metrics(restored.step)
        log.warning("Going on after step %d of %s", restored.step, self.run.path)

    def run_to_the_end(self) -> int:
        """Train, evaluate, report."""
        cfg, setup = self.setup.cfg, self.setup
        start = int(self.state.step)
        if setup.eval_source is not None:
            self.evaluator = Evaluators(
                setup.eval_source,
                setup.eval_also,
                setup.model,
                setup.mesh,
                setup.tokenizer,
                cfg=cfg.evaluation,
                data=cfg.data,
                loss=cfg.loss,
            )
        self.progress = Progress(
            self.run,
            cfg.logging,
            start=start,
            steps=cfg.steps,
            batch_size=cfg.data.batch_size,
            flops=training_flops(
                setup.model.config,
                frozen=FROZEN[cfg.model.freeze],
                unlocked_blocks=cfg.model.unlocked_blocks,
            ),
        )
        self.profile = Profile(cfg.logging.profile_steps, self.run.path)
        with self.progress, self.profile:
            if not self.rerun_missed_evaluation(start):
                return self.preemption.exit_code
            if start < cfg.steps:
                with Prefetch(self.batches(start), setup.mesh, cfg.data.prefetch) as batches:
                    if not self.train(start, batches):
                        return self.preemption.exit_code
            self.checkpoints.wait()
        self.report()
        return 0

    def rerun_missed_evaluation(self, start: int) -> bool:
        """What was cut off when the run was asked to leave while it measured step `start`."""
        cfg = self.setup.cfg
        due = start > 0 and self.is_time(cfg.evaluation.every_steps, start, cfg.steps)
        if due and not self.measured and self.evaluate(start) is None:
            return self.leave(start)
        if start in (0, cfg.steps // 2, cfg.steps):
            self.snapshot()
        return True

    def train(self, start: int, batches: Prefetch) -> bool:
        """The steps from `start` to the last; False if the run was asked to leave before."""
        cfg = self.setup.cfg
        step_fn = self.compile()
        self.progress.restart_clock()
        for step in range(start + 1, cfg.steps + 1):
            self.goodput.switch("waiting_for_data")
            began = time.monotonic()
            batch = next(batches)
            self.progress.waited(time.monotonic() - began)

            self.goodput.switch("stepping")
            self.profile.before(step)
            self.state, metrics = step_fn(self.state, batch)
            self.profile.after(step, metrics)
            self.flush_metrics()  # with the step before, while the devices work on this one
            self.pending, self.ledger = (step, metrics), batches.ledger
            last = step == cfg.steps
            found = None
            if self.is_time(cfg.evaluation.every_steps, step, cfg.steps):
                self.flush_metrics()
                if (found := self.evaluate(step)) is None:
                    return self.leave(step)
            if step in (cfg.steps // 2, cfg.steps):
                self.snapshot()

            self.goodput.switch("saving")
            self.checkpoints.save(
                step, self.state, metadata=self.metadata, metrics=found, force=last
            )
            self.watchdog.beat()
            if self.preemption.requested() and not last:
                return self.leave(step)
        return True

    def compile(self) -> Any:
        """The train step, compiled for these devices before the first batch is there."""
        setup = self.setup
        with (
            self.goodput.phase("compiling"),
            self.watchdog.allow("compiling", extra_seconds=COMPILE_SECONDS),
        ):
            step = jit_train_step(
                setup.mesh,
                setup.abstract_state,
                model=setup.model,
                optimizer=setup.optimizer,
                cfg=setup.cfg,
            )
            batch = abstract_batch(setup.mesh, setup.model, setup.cfg.data.batch_size)
            return step.lower(setup.abstract_state, batch).compile()

    def flush_metrics(self):
        """Wait for the numbers of the pending step, log them, and see whether the run is sound."""
        if self.pending is None:
            return
        (step, on_device), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(on_device).items()}
        in_row = metrics.pop("skipped_in_row")
        if self.progress.is_due(step):
            # Steps left out do not count in it, and neither does this one if it is one of them.
            taken = step - 1 - metrics["skipped_steps"] + (in_row > 0)
            metrics["learning_rate"] = float(self.setup.schedule(taken))
        self.progress.step(step, metrics)
        if in_row >= self.setup.cfg.health.max_skipped_in_row:
            raise TooManySkipped(
                f"{in_row:.0f} steps in a row, the last being step {step}, had a loss or gradient "
                f"that is not finite or far too large (loss {metrics['loss']:g}, gradient norm "
                f"{metrics['grad_norm']:g}); health.max_skipped_in_row allows no more. The "
                "parameters are those before the first of them. Lower optimizer.learning_rate, "
                "set optimizer.clip_norm, or look at the data."
            )
        if in_row:
            self.progress.say(
                f"Step {step} was left out: loss {metrics['loss']:g}, gradient norm {metrics['grad_norm']:g}."
            )

    def evaluate(self, step: int) -> dict[str, float] | None:
        """Measure the model and log what was found; None if the run was asked to leave."""
        if self.evaluator is None:
            return {}
        with self.goodput.phase("evaluating"), self.watchdog.allow("evaluating"):

            def should_stop() -> bool:
                self.watchdog.beat()
                return self.preemption.requested()

            evaluation = self.evaluator(self.state.ema_variables, should_stop=should_stop)
        self.progress.restart_clock()
        if evaluation is None:
            return None
        self.progress.write(step, evaluation.metrics)
        if jax.process_index() == 0:
            save_evaluation(self.run.path, step, evaluation)
        shown = headlines(self.setup.cfg.evaluation)
        found = [(k, v) for k, v in evaluation.metrics.items() if k.endswith(shown)]
        self.progress.say(f"Step {step}: {', '.join(f'{k[5:]} {v:.4g}' for k, v in found)}")
        return evaluation.metrics

    def snapshot(self):
        """Keep the similarity matrix of some fixed pairs as it is now, for the report."""
        cfg, setup = self.setup.cfg, self.setup
        source = setup.eval_source or setup.sources[0]
        with self.goodput.phase("evaluating"), self.watchdog.allow("evaluating"):
            size = cfg.evaluation.batch_size
            encoder = Encoder(setup.model, self.state.ema_variables, setup.mesh, batch_size=size)
            config = setup.model.config
            reading = eval_batches(
                source,
                setup.tokenizer,
                cfg.data,
                batch_size=size,
                image_size=config.vision.image_size,
                preprocess=config.preprocess,
                max_samples=min(SNAPSHOT_PAIRS, len(source)),
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            )
            with reading:
                z_image_NE, index_N = encoder.encode_images(reading)
            texts = [source[int(index)].captions[0] for index in index_N]
            z_text_NE = encoder.encode_texts(np.asarray(setup.tokenizer(texts)))
            if jax.process_index() == 0:
                save_snapshot(self.run.path, int(self.state.step), z_image_NE @ z_text_NE.T)
        self.progress.restart_clock()

    def batches(self, start: int) -> Batches:
        """The training batches from `start` on, of this process's rows."""
        cfg, config = self.setup.cfg, self.setup.model.config
        return train_batches(
            self.setup.sources,
            self.setup.tokenizer,
            cfg.data,
            image_size=config.vision.image_size,
            preprocess=config.preprocess,
            seed=cfg.seed,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            ledger=BadSamples.from_json(self.ledger) if self.ledger else None,
        )

    def metadata(self) -> dict:
        """What a checkpoint says besides its arrays; asked for when one is about to be written."""
        self.flush_metrics()  # else a kill could leave a checkpoint whose last step was never logged
        return {
            "ledgers": allgather_json(self.ledger),
            "goodput": self.goodput.seconds(),
            "config": run_settings(self.setup.cfg),
            "fingerprint": run_record.fingerprint(self.setup),
            **provenance.environment(),
        }

    def leave(self, step: int) -> bool:
        """Save and go, because the machine is taken away or a person said so."""
        log.warning("Asked to leave: saving step %d", step)
        self.checkpoints.save(step, self.state, metadata=self.metadata, force=True)
        self.goodput.end = "preempted" if self.preemption.exit_code == 75 else "interrupted"
        return False

    def report(self):
        """bad_samples.json and report.html."""
        if self.ledger is not None:
            index = jax.process_index()
            name = "bad_samples.json" if index == 0 else f"bad_samples.{index}.json"
            BadSamples.from_json(redact(self.ledger)).save(self.run.path / name)
        if self.setup.cfg.logging.report and jax.process_index() == 0:
            devices = jax.devices()
            path = write_report(
                self.run.path,
                facts={"Devices": f"{len(devices)} x {devices[0].device_kind}"},
                goodput=self.goodput.seconds(),
            )
            print(f"The report: {path}", flush=True)

    @staticmethod
    def is_time(every: int | None, step: int, last: int) -> bool:
        """None: at the last step alone; 0: never."""
        return every != 0 and (step == last or (every is not None and step % every == 0))

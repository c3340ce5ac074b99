"""A run from its settings to its report. `fit` is the loop: step, log, save, evaluate."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax

from clip_jax.config import TrainConfig
from clip_jax.config_io import flatten, run_settings
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import Batches, train_batches
from clip_jax.distributed import agreement, initialize
from clip_jax.distributed.failures import failing_together, together
from clip_jax.distributed.multihost import allgather_json
from clip_jax.distributed.preemption import RETRY_EXIT_CODE, Preemption
from clip_jax.distributed.process_logs import process_logs
from clip_jax.distributed.watchdog import Watchdog
from clip_jax.evaluation.suite import best_direction
from clip_jax.models.flops import training_flops
from clip_jax.redaction import redact
from clip_jax.runs import provenance
from clip_jax.runs.bad_samples import open_bad_samples, own_counts
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.console import duration, tolerant_streams
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.goodput import Goodput
from clip_jax.runs.progress import Progress
from clip_jax.runs.report.page import write_report
from clip_jax.training import run_record
from clip_jax.training.evaluations import Evaluations, is_due
from clip_jax.training.position import Position, resumed_position
from clip_jax.training.prefetch import Prefetch
from clip_jax.training.profiling import Profile
from clip_jax.training.setup import Setup, prepare
from clip_jax.training.state import FROZEN, TrainState
from clip_jax.training.step import abstract_batch, jit_train_step
from clip_jax.training.step_log import StepLog, make_hooks

log = logging.getLogger(__name__)

COMPILE_SECONDS = 3600.0  # that compiling may take beyond health.hang_seconds


@together
def train(cfg: TrainConfig, *, began: float | None = None) -> int:
    """Train, or resume the run that is in `cfg.workdir`.

    Args:
      cfg: the settings.
      began: when this start began, by `time.monotonic`, from which its goodput counts; None: once
        all processes have met.

    Returns:
      0 at the end of the run; else what the process should exit with so that a launcher starts
      it again (`RETRY_EXIT_CODE`) or does not (Ctrl-C).

    Raises:
      ValueError, FileNotFoundError: a setting or file at fault.
      RunFailed: the training has broken down, or an evaluation failed.
      SaveFailed: checkpoints could not be written for too long.
    """
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(tolerant_streams())
        run = stack.enter_context(RunDirectory(cfg.workdir, main=main))
        initialize.barrier("the run directory is open", cfg.distributed.timeout_seconds)
        stack.enter_context(process_logs(run.path, is_local=run.is_local))
        goodput = stack.enter_context(Goodput(run.path / "goodput.json", write=main, began=began))
        preemption = stack.enter_context(Preemption())
        stacks = run.path / "stacks.txt" if run.is_local else None
        watchdog = stack.enter_context(Watchdog(cfg.health.hang_seconds, stacks))
        with watchdog.allow("preparing", extra_seconds=COMPILE_SECONDS):
            agreement.check_same_directory(run.path)
            setup = prepare(cfg, run)
            agreement.check_equal(run_record.facts(setup))
            run_record.check_resume(setup, run)
            limit_s = cfg.health.hang_seconds + COMPILE_SECONDS
            initialize.barrier("all is prepared", limit_s)  # nobody reads what is written below
            run.check_checkpoints()
            better = best_direction(cfg)
            checkpoints = stack.enter_context(
                Checkpoints(
                    run.checkpoints,
                    cfg.checkpoint,
                    better=better,
                    on_saved=functools.partial(run_record.note_saved, setup, run),
                )
            )
            state, position, bad_samples = restore_or_start(setup, run, checkpoints, goodput)
            run_record.write(setup, run)
        with failing_together():  # before the files above are closed, which waits for the others
            progress = stack.enter_context(make_progress(setup, run, position))
            watch = {"goodput": goodput, "preemption": preemption, "watchdog": watchdog}
            parts = Parts(
                setup=setup,
                position=position,
                checkpoints=checkpoints,
                progress=progress,
                log=make_step_log(setup, progress),
                evaluate=Evaluations(setup, run, checkpoints, progress=progress, **watch),
                profile=stack.enter_context(Profile(cfg.logging.profile_steps, run.path)),
                **watch,
            )
            return run_to_the_end(parts, run, state, bad_samples)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What surrounds the steps of a run."""

    setup: Setup
    position: Position
    checkpoints: Checkpoints
    progress: Progress
    log: StepLog
    evaluate: Evaluations
    profile: Profile
    goodput: Goodput
    preemption: Preemption
    watchdog: Watchdog


def run_to_the_end(
    parts: Parts, run: RunDirectory, state: TrainState, bad_samples: dict | None
) -> int:
    """What the last start missed, the steps, and the report."""
    start, last = int(state.step), parts.setup.cfg.steps
    if not parts.evaluate.rerun_missed(start, state):
        return save_and_exit(parts, start, state, bad_samples)
    if start < last:
        step_fn = compile_step(parts)
        with Prefetch(
            batches_from(parts.setup, run, parts.position, bad_samples),
            parts.setup.mesh,
            parts.setup.cfg.data.prefetch,
        ) as batches:
            exit_code = fit(parts, state, batches, step_fn)
            bad_samples = batches.bad_samples
        if exit_code:
            return exit_code
    parts.checkpoints.wait()
    report(parts, run, bad_samples)
    parts.evaluate.check()
    return 0


def fit(parts: Parts, state: TrainState, batches: Prefetch, step_fn: Callable) -> int:
    """The steps from the state's to the last.

    Returns:
      0, or what the process should exit with after a signal.
    """
    cfg, goodput, progress = parts.setup.cfg, parts.goodput, parts.progress
    progress.restart_clock()
    for step in range(int(state.step) + 1, cfg.steps + 1):
        goodput.switch("waiting_for_data")
        parts.watchdog.beat(f"waiting for the batch of step {step}")
        began = time.monotonic()
        try:
            batch = batches.take(leave=parts.preemption.requested_alone)
        except Exception:
            save_before_failing(parts, step - 1, state, batches.bad_samples)
            raise
        if batch is None:
            return save_and_exit(parts, step - 1, state, batches.bad_samples)
        progress.waited(time.monotonic() - began)

        goodput.switch("stepping")
        parts.watchdog.beat(f"in step {step}")
        parts.profile.before(step)
        state, metrics = step_fn(state, batch)
        parts.profile.after(step, metrics)
        parts.log(step, state, metrics)  # the step before, while the devices work on this one

        goodput.switch("saving")
        parts.watchdog.beat(f"saving step {step}")
        last = step == cfg.steps
        keeps_best = cfg.checkpoint.keep_best_by is not None and parts.evaluate.is_due(step)
        metadata = functools.partial(describe, parts, step, batches.bad_samples)
        parts.checkpoints.save(step, state, metadata=metadata, due=keeps_best, force=last)

        if parts.evaluate.has_work(step):
            parts.log.flush()  # which waits for the step: two programs at once may block each other
        if not parts.evaluate(step, state):
            return save_and_exit(parts, step, state, batches.bad_samples)
        parts.watchdog.beat()
        if parts.preemption.requested() and not last:
            return save_and_exit(parts, step, state, batches.bad_samples)
    parts.log.flush()
    return 0


def save_and_exit(parts: Parts, step: int, state: TrainState, bad_samples: dict | None) -> int:
    """Save because the machine is taken away or a person said so, and say how to exit."""
    code = parts.preemption.exit_code
    preempted = code == RETRY_EXIT_CODE
    why = "Preempted" if preempted else "Interrupted"
    name = parts.preemption.signal_name
    log.warning("%s (%s): saving a checkpoint at step %d", why, name, step)
    metadata = functools.partial(describe, parts, step, bad_samples)
    if step:  # there is nothing to lose at the start
        parts.checkpoints.save(step, state, metadata=metadata, force=True)
    parts.goodput.end = "preempted" if preempted else "interrupted"
    return code


def save_before_failing(parts: Parts, step: int, state: TrainState, bad_samples: dict | None):
    """Data that fail end a run, but not the steps done before. The others of a job may be elsewhere."""
    if initialize.several() or not step:
        return
    log.warning("The data failed: saving a checkpoint at step %d", step)
    try:
        metadata = functools.partial(describe, parts, step, bad_samples)
        parts.checkpoints.save(step, state, metadata=metadata, due=True)
    except Exception:
        log.exception("Step %d could not be saved", step)


def restore_or_start(
    setup: Setup, run: RunDirectory, checkpoints: Checkpoints, goodput: Goodput
) -> tuple[TrainState, Position, dict | None]:
    """The newest intact checkpoint, or step 0; with it its position and the counts of bad samples."""
    restored, batch_size = checkpoints.restore(setup.abstract_state), setup.cfg.data.batch_size
    if restored is None:
        goodput.resumed_from(None)
        run.rewind_metrics(0)
        return setup.new_state(), Position(0, 0, batch_size), None
    goodput.resumed_from(restored.metadata.get("goodput"))
    evaluated = checkpoints.is_evaluated(restored.step) or not is_due(setup, restored.step)
    run.rewind_metrics(restored.step, evaluated=evaluated)
    log.warning("Resuming from step %d of %s", restored.step, run.path)
    # Earlier versions named the counts "ledgers".
    saved = restored.metadata.get("bad_samples", restored.metadata.get("ledgers", []))
    position = resumed_position(restored.step, restored.metadata, batch_size)
    return restored.state, position, own_counts(saved)


def compile_step(parts: Parts) -> Callable:
    """The train step, compiled for these devices before the first batch is there."""
    setup = parts.setup
    with (
        parts.goodput.phase("compiling"),
        parts.watchdog.allow("compiling", extra_seconds=COMPILE_SECONDS),
    ):
        step = jit_train_step(
            setup.mesh,
            setup.abstract_state,
            model=setup.model,
            optimizer=setup.optimizer,
            cfg=setup.cfg,
        )
        batch = abstract_batch(setup.mesh, setup.model, setup.cfg.data.batch_size)
        began = time.monotonic()
        parts.progress.print("Compiling the train step")
        compiled = step.lower(setup.abstract_state, batch).compile()
        parts.progress.print(f"Compiled the train step in {duration(time.monotonic() - began)}")
        return compiled


def make_progress(setup: Setup, run: RunDirectory, position: Position) -> Progress:
    cfg = setup.cfg
    flops = training_flops(
        setup.model.config,
        frozen=FROZEN[cfg.model.freeze],
        unlocked_blocks=cfg.model.unlocked_blocks,
        heads=setup.model.heads,
    )
    return Progress(
        run,
        cfg.logging,
        start=position.step,
        steps=cfg.steps,
        batch_size=cfg.data.batch_size,
        samples=position.samples,
        flops=flops,
        settings=flatten(run_settings(cfg)),
    )


def make_step_log(setup: Setup, progress: Progress) -> StepLog:
    hooks = make_hooks(setup.cfg.logging.hooks)
    return StepLog(progress, setup.schedule, setup.cfg.health, hooks=hooks)


def batches_from(
    setup: Setup, run: RunDirectory, position: Position, bad_samples: dict | None
) -> Batches:
    """The training batches from a position on, of this process's rows."""
    cfg, config = setup.cfg, setup.model.config
    return train_batches(
        setup.sources,
        setup.tokenizer,
        cfg.data,
        image_size=config.vision.image_size,
        preprocess=config.preprocess,
        seed=cfg.seed,
        start_step=position.step,
        samples_before=position.samples,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        bad_samples=open_bad_samples(bad_samples, run.path if run.is_local else None),
    )


def describe(parts: Parts, step: int, bad_samples: dict | None) -> dict[str, Any]:
    """What a checkpoint says besides its arrays; asked for when one is about to be written."""
    # A kill must not leave a checkpoint whose last step was never logged.
    parts.log.flush()
    parts.progress.flush()
    return {
        "samples": parts.position.samples_after(step),
        "bad_samples": allgather_json(bad_samples),
        "goodput": parts.goodput.seconds(),
        "config": run_settings(parts.setup.cfg),
        **run_record.data_record(parts.setup),
        **provenance.environment(),
    }


def report(parts: Parts, run: RunDirectory, bad_samples: dict | None):
    """bad_samples.json and report.html, neither of which ends a run that is done."""
    if bad_samples is not None:
        index = jax.process_index()
        name = "bad_samples.json" if index == 0 else f"bad_samples.{index}.json"
        try:
            BadSamples.from_json(redact(bad_samples)).save(run.path / name)
        except OSError as error:
            log.warning("%s could not be written: %s", name, error)
    if parts.setup.cfg.logging.report and jax.process_index() == 0:
        devices = jax.devices()
        facts = {"Devices": f"{len(devices)} x {devices[0].device_kind}"}
        try:
            parts.progress.flush()  # the report reads what was logged
            path = write_report(run.path, facts=facts, goodput=parts.goodput.seconds())
        except Exception:  # the weights are saved: `clip-jax report` writes it later
            log.exception("report.html could not be written")
        else:
            parts.progress.report(path)

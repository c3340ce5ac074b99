"""What is measured of a run in between: evaluations of saved steps, and snapshots for the report."""

import contextlib
import logging
from collections.abc import Iterator

import jax
import numpy as np

from clip_jax.data.loader import EqualBatches, eval_batches
from clip_jax.distributed import initialize
from clip_jax.distributed.failures import is_loss
from clip_jax.distributed.multihost import OtherProcessFailed, raise_together
from clip_jax.distributed.preemption import Preemption
from clip_jax.distributed.rendezvous import ProcessesMissing
from clip_jax.distributed.watchdog import Watchdog
from clip_jax.evaluation.annotations import read_annotations
from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.suite import headlines
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.goodput import Goodput
from clip_jax.runs.progress import Progress
from clip_jax.runs.results import save_evaluation, save_snapshot
from clip_jax.training.setup import Setup
from clip_jax.training.state import TrainState
from clip_jax.training.step_log import RunFailed

log = logging.getLogger(__name__)

SNAPSHOT_PAIRS = 48  # of the similarity matrix in the report


class EvaluationFailed(RunFailed):
    """The training is done and saved; an evaluation could not be."""


class Evaluations:
    """Measures the model at the steps that the settings name, each after it was saved.

    One that fails in any of the processes ends no training: it is logged by all, and `check` raises
    at the end of the run. The next start tries again that of the step which it resumes from.
    """

    def __init__(
        self,
        setup: Setup,
        run: RunDirectory,
        checkpoints: Checkpoints,
        *,
        progress: Progress,
        goodput: Goodput,
        preemption: Preemption,
        watchdog: Watchdog,
    ):
        self._setup, self._run, self._checkpoints = setup, run, checkpoints
        self._progress, self._goodput = progress, goodput
        self._preemption, self._watchdog = preemption, watchdog
        self._failed: dict[int, Exception] = {}

    def is_due(self, step: int) -> bool:
        """Whether the model is measured at this step."""
        return is_due(self._setup, step)

    def has_work(self, step: int) -> bool:
        """Whether a call at this step uses the model."""
        return self.is_due(step) or self._keeps_snapshot(step)

    def _keeps_snapshot(self, step: int) -> bool:
        cfg = self._setup.cfg
        return cfg.logging.report and step in (0, cfg.steps // 2, cfg.steps)

    def __call__(self, step: int, state: TrainState) -> bool:
        """Measure what is due at a step. False if the run was asked to stop before its end."""
        if self.is_due(step) and not self._evaluate(step, state):
            return False
        self._snapshot_if_due(step, state)
        return True

    def rerun_missed(self, step: int, state: TrainState) -> bool:
        """What the last start was to measure at its last step, unless it did."""
        evaluated = step == 0 or self._checkpoints.is_evaluated(step)
        if self.is_due(step) and not evaluated and not self._evaluate(step, state):
            return False
        self._snapshot_if_due(step, state)
        return True

    def check(self):
        """Raise at the end of a run if an evaluation failed in this start.

        Raises:
          EvaluationFailed: with the steps and the last reason.
        """
        if self._failed:
            steps, why = ", ".join(map(str, self._failed)), str(list(self._failed.values())[-1])
            raise EvaluationFailed(
                f"the evaluation of step {steps} failed: {why.removesuffix('.')}. The "
                f"weights of step {self._setup.cfg.steps} are saved in {self._run.checkpoints}. "
                "The same command tries that evaluation again"
            )

    def _evaluate(self, step: int, state: TrainState) -> bool:
        def should_stop() -> bool:
            self._watchdog.beat()
            return self._preemption.requested()

        with self._measuring(step, "evaluation"):
            found = self._setup.evaluators(state.ema_variables, should_stop=should_stop)
            if found is None:
                return False
            self._progress.write(step, found.metrics)
            self._progress.flush()  # what is recorded is not measured again: it must be logged
            self._checkpoints.record(step, found.metrics)
            if jax.process_index() == 0:
                save_evaluation(self._run.path, step, found)
            ends = headlines(self._setup.cfg.evaluation)
            shown = [f"{k[5:]} {v:.4g}" for k, v in found.metrics.items() if k.endswith(ends)]
            self._progress.print(f"Step {step}: {', '.join(shown)}")
        return True

    def _snapshot_if_due(self, step: int, state: TrainState):
        """Keep the similarity matrix of some fixed pairs at the start, middle and end of a run."""
        cfg, setup, config = self._setup.cfg, self._setup, self._setup.model.config
        if not self._keeps_snapshot(step):
            return
        source = setup.eval_source or setup.sources[0]
        with self._measuring(step, "snapshot"):
            size = cfg.evaluation.batch_size
            encoder = Encoder(setup.model, state.ema_variables, setup.mesh, batch_size=size)
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
            with EqualBatches(reading, alone=jax.process_count() == 1) as equal:
                z_image_NE, index_N = encoder.encode_images(equal)
            raise_together(equal.error)
            read = read_annotations(source, index_N.tolist())
            texts = [(*annotation.captions, "")[0] for annotation in read]
            z_text_NE = encoder.encode_texts(np.asarray(setup.tokenizer(texts)))
            if jax.process_index() == 0:
                save_snapshot(self._run.path, step, z_image_NE @ z_text_NE.T)

    @contextlib.contextmanager
    def _measuring(self, step: int, what: str) -> Iterator[None]:
        """The time counts as evaluation's, and a failure ends no training."""
        failure = None
        try:
            with (
                self._goodput.phase("evaluating"),
                self._watchdog.allow(f"in the {what} of step {step}"),
            ):
                try:
                    yield
                except Exception as error:
                    if is_loss(error):
                        raise
                    failure = error
                failure = self._agreed(f"{what} of step {step}", failure)
        finally:
            self._progress.restart_clock()
        if failure is not None:
            self._failed[step] = failure
            # Of a fault in the data its own words say all; of any other the stack is needed.
            stack = None if isinstance(failure, ValueError | OSError) else failure
            text = "The %s of step %d failed; the training continues: %s"
            log.error(text, what, step, failure, exc_info=stack)

    def _agreed(self, what: str, failure: Exception | None) -> Exception | None:
        """This process's failure, or else that of another one; None where there is none.

        No device takes part, because the others may be in a collective that this one never came to.
        Then nobody answers, and the failure ends the start.
        """
        if not initialize.several():
            return failure
        text = None if failure is None else f"{type(failure).__name__}: {failure}"[:2000]
        try:
            said = initialize.exchange(what, text, self._setup.cfg.health.hang_seconds)
        except ProcessesMissing:
            raise failure or OtherProcessFailed(f"no answer about the {what}") from failure
        others = (f"process {index}: {text}" for index, text in said.items() if text)
        if failure is None and (text := next(others, None)):
            return OtherProcessFailed(text)
        return failure


def is_due(setup: Setup, step: int) -> bool:
    """Whether the model is measured at a step."""
    due = is_time(setup.cfg.evaluation.every_steps, step, setup.cfg.steps)
    return due and setup.evaluators is not None


def is_time(every: int | None, step: int, last: int) -> bool:
    """None: at the last step alone; 0: never."""
    return every != 0 and (step == last or (every is not None and step % every == 0))

"""Where a run's figures are written: metrics.jsonl, TensorBoard, Weights & Biases, or a logger of your own."""

import functools
import importlib.util
import logging
import math
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from clip_jax.redaction import redact
from clip_jax.registry import resolve
from clip_jax.runs.directory import RunDirectory

log = logging.getLogger(__name__)

MOST_WAITING = 10_000  # records that wait for a slow disk before the oldest are dropped
FLUSH_S = 10.0  # that a checkpoint waits for the figures before it
CLOSE_S = 60.0  # that the end of a run waits for its loggers
WARN_EVERY_S = 300.0  # about a logger that keeps failing


class Logger:
    """One destination. The methods run on a thread of their own, in order; an exception is a warning.

    Args:
      run: the run directory.
      start: steps done before this start; what was logged of later ones is done again.
      settings: of the run, flat: {"optimizer.learning_rate": 5e-4, ...}.
    """

    def __init__(self, run: RunDirectory, *, start: int, settings: dict[str, Any]):
        self.run, self.start, self.settings = run, start, settings

    @classmethod
    def check(cls):
        """Raises ValueError where something that it needs is not installed; before the training."""

    def log(self, step: int, values: dict[str, float]):
        """The figures of a step: train figures by their names, others as eval/NAME."""

    def report(self, path: str):
        """The run's report was written to `path`."""

    def flush(self):
        """A checkpoint is about to be written: what was logged must survive a kill."""

    def close(self):
        """The run has ended, or this start of it."""


class JsonLines(Logger):
    """RUN/metrics.jsonl, a line for each step that is logged."""

    def log(self, step, values):
        self.run.append_metrics({"step": step, **values})


class _ClockAfter:
    """Stands in for the module `time`; its time is later than some second."""

    def __init__(self, second: int):
        self._second = second

    def time(self) -> float:
        return max(time.time(), self._second + 1)


class TensorBoard(Logger):
    """Events in the run directory. Steps that are done again replace those of the start before."""

    def __init__(self, run, *, start, settings):
        super().__init__(run, start=start, settings=settings)
        from tensorboardX import SummaryWriter, event_file_writer

        # The last steps are written again, out of metrics.jsonl: a kill may have cut off what was not
        # flushed, or left an evaluation that is about to be repeated.
        again = run.resumed_metrics
        first = again[0]["step"] if again else start + 1
        purge = {"purge_step": first} if start or run.newest_events else {}
        # TensorBoard reads files in the order of their names, which have the time in them: that of a
        # start must be later than all before, also where the clock was set back in between.
        clock, event_file_writer.time = event_file_writer.time, _ClockAfter(run.newest_events)
        try:
            self._writer = SummaryWriter(os.fspath(run.path), flush_secs=30, **purge)
        finally:
            event_file_writer.time = clock
        text = "\n".join(f"    {name} = {value}" for name, value in sorted(settings.items()))
        self._writer.add_text("settings", text, start)
        for line in again:
            figures = {name: math.nan if x is None else x for name, x in line.items()}
            step = figures.pop("step")
            self.log(step, {k: x for k, x in figures.items() if isinstance(x, int | float)})

    def log(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def report(self, path):
        self._writer.add_text("report", f"`{path}`", self.start)

    def flush(self):
        self._writer.flush()

    def close(self):
        self._writer.close()


class WeightsAndBiases(Logger):
    """A Weights & Biases run, the same one after a restart; WANDB_MODE=offline needs no account."""

    @classmethod
    def check(cls):
        if importlib.util.find_spec("wandb") is None:
            raise ValueError(
                "logging.loggers has wandb, which is not installed: pip install wandb, or leave it out"
            )

    def __init__(self, run, *, start, settings):
        super().__init__(run, start=start, settings=settings)
        import wandb

        known = run.read_json("wandb.json") or {"id": uuid.uuid4().hex[:8]}
        run.write_json("wandb.json", known)
        self._wandb = wandb
        self._run = wandb.init(
            id=known["id"],
            resume="allow",
            dir=os.fspath(run.path) if run.is_local else None,
            name=run.path.name,
            project=os.environ.get("WANDB_PROJECT", "clip_jax"),
            settings=wandb.Settings(console="off"),  # else it would replace the standard streams
        )
        self._run.config.update(redact(settings), allow_val_change=True)
        # A step of its own, because W&B drops what comes for a step before its newest one: an
        # evaluation that is repeated would be lost.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._done = int(self._run.summary.get("step") or 0)

    def log(self, step, values):
        # Steps that are done again after a kill have the same figures, and are there already.
        new = values if step > self._done else {k: v for k, v in values.items() if "/" in k}
        if new:
            self._run.log({"step": step, **new})

    def report(self, path):
        with open(path, encoding="utf-8") as file:
            self._run.log({"report": self._wandb.Html(file.read())})

    def close(self):
        self._run.finish()


LOGGERS: dict[str, Callable[..., Logger]] = {
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_loggers(names: Sequence[str]):
    """Refuse loggers that cannot be, before anything starts.

    Raises:
      ValueError: a name is of no logger, or what it needs is not installed.
    """
    for name in names:
        kind = resolve("logging.loggers", name, LOGGERS)
        if not callable(kind):
            raise ValueError(f"logging.loggers={name} is a {type(kind).__name__}, not a Logger")
        getattr(kind, "check", lambda: None)()


def make_loggers(
    names: Sequence[str], run: RunDirectory, *, start: int, settings: dict[str, Any]
) -> "Loggers":
    """The loggers of `logging.loggers`, behind one writer.

    Raises:
      ValueError: a name is of no logger, or what it needs is not installed.
    """
    check_loggers(names)
    kinds = [resolve("logging.loggers", name, LOGGERS) for name in names]
    return Loggers([functools.partial(kind, run, start=start, settings=settings) for kind in kinds])


class Loggers:
    """All loggers, each behind a thread of its own, so that none makes a step or another one wait.

    Args:
      makers: of the loggers, each called by the thread of its logger.
    """

    def __init__(self, makers: Sequence[Callable[[], Logger]]):
        self._writers = [_Writer(make) for make in makers]

    def log(self, step: int, values: dict[str, float]):
        for writer in self._writers:
            writer.put("log", step, values)

    def report(self, path: str):
        for writer in self._writers:
            writer.put("report", path)

    def flush(self) -> bool:
        """Wait until all is written, FLUSH_S at most; whether it is. Not for what is being opened."""
        deadline = time.monotonic() + FLUSH_S
        for writer in self._writers:
            writer.put("flush")
        done = [writer.wait(deadline) for writer in self._writers if not writer.is_opening]
        return all(done)

    def close(self):
        """Wait until all is written and the loggers are closed, CLOSE_S at most."""
        deadline = time.monotonic() + CLOSE_S
        for writer in self._writers:
            writer.put("flush")
            writer.end()
        for writer in self._writers:
            writer.join(deadline)


class _Writer:
    """One logger, its thread, and what waits for it."""

    def __init__(self, make: Callable[[], Logger]):
        self._make, self._logger = make, None
        kind = getattr(make, "func", make)
        self._name = getattr(kind, "__name__", type(kind).__name__)
        self._waiting: deque[tuple[str, tuple]] = deque()
        self._wake = threading.Condition()
        self._busy, self._closed, self.is_opening = True, False, True
        self._dropped = 0
        self._warned = 0.0
        self._thread = threading.Thread(target=self._work, name="logger", daemon=True)
        self._thread.start()

    def put(self, call: str, *arguments):
        with self._wake:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self._dropped += 1
                self._warn(f"{self._dropped} records were dropped: the storage is too slow")
            self._waiting.append((call, arguments))
            self._wake.notify_all()

    def wait(self, deadline: float) -> bool:
        """Whether all that was put is written before the deadline."""
        with self._wake:
            left = max(0.0, deadline - time.monotonic())
            done = self._wake.wait_for(lambda: not self._waiting and not self._busy, left)
        if not done:
            self._warn(f"nothing could be written for {FLUSH_S:g} s")
        return done

    def end(self):
        """Nothing more will be put."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def join(self, deadline: float):
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(f"it could not be closed in {CLOSE_S:g} s")

    def _work(self):
        try:
            self._logger = self._make()
        except Exception as error:
            self._warn(f"it cannot be opened, {type(error).__name__}: {error}")
        while True:
            with self._wake:
                self._busy = self.is_opening = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    break
                call, arguments = self._waiting.popleft()
                self._busy = True
            if call == "log":  # here, because the training does not wait for it
                step, values = arguments
                arguments = step, {name: float(f"{value:.7g}") for name, value in values.items()}
            self._do(call, *arguments)
        self._do("close")

    def _do(self, call: str, *arguments):
        try:
            if self._logger is not None:
                getattr(self._logger, call)(*arguments)
        except Exception as error:  # a log never ends a run
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, text: str):
        now = time.monotonic()
        if now >= self._warned:
            self._warned = now + WARN_EVERY_S
            log.warning("Logging failed (%s): %s. Training continues.", self._name, text)

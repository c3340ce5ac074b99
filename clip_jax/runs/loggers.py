"""Where a run's figures are written: metrics.jsonl, TensorBoard, Weights & Biases, or a logger of your own."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from clip_jax.registry import resolve
from clip_jax.runs.directory import RunDirectory

log = logging.getLogger(__name__)

MOST_WAITING = 10_000  # records that wait for a slow disk before the oldest are dropped
FLUSH_S = 10.0  # that a checkpoint waits for the figures before it
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

    def log(self, step: int, values: dict[str, float]):
        """The figures of a step: train figures by their names, others as eval/NAME."""

    def report(self, path: str):
        """The run's report was written to `path`."""

    def flush(self):
        """A checkpoint is about to be written: what was logged must survive a kill."""

    def close(self):
        pass


class JsonLines(Logger):
    """RUN/metrics.jsonl, a line for each step that is logged."""

    def log(self, step, values):
        self.run.append_metrics({"step": step, **values})


class TensorBoard(Logger):
    """Events in the run directory. Steps that are done again replace those of the start before."""

    def __init__(self, run, *, start, settings):
        super().__init__(run, start=start, settings=settings)
        from tensorboardX import SummaryWriter

        purge = {"purge_step": start + 1} if start or run.has_events else {}
        self._writer = SummaryWriter(os.fspath(run.path), flush_secs=30, **purge)
        text = "\n".join(f"    {name} = {value}" for name, value in sorted(settings.items()))
        self._writer.add_text("settings", text, start)

    def log(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def flush(self):
        self._writer.flush()

    def close(self):
        self._writer.close()


class WeightsAndBiases(Logger):
    """A Weights & Biases run, the same one after a restart; WANDB_MODE=offline needs no account."""

    def __init__(self, run, *, start, settings):
        super().__init__(run, start=start, settings=settings)
        try:
            import wandb
        except ImportError as error:
            raise ValueError("logging.loggers has wandb: pip install wandb") from error
        known = run.read_json("wandb.json") or {"id": wandb.util.generate_id()}
        run.write_json("wandb.json", known)
        folder = os.fspath(run.path) if run.is_local else None
        self._wandb = wandb
        self._run = wandb.init(
            id=known["id"],
            resume="allow",
            dir=folder,
            name=run.path.name,
            project=os.environ.get("WANDB_PROJECT", "clip_jax"),
            config=settings,
        )

    def log(self, step, values):
        self._run.log(values, step=step)

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


def make_loggers(
    names: Sequence[str], run: RunDirectory, *, start: int, settings: dict[str, Any]
) -> "Loggers":
    """The loggers of `logging.loggers`, behind one writer.

    Raises:
      ValueError: a name is of no logger, or what it needs is not installed.
    """
    made = [resolve("logging.loggers", name, LOGGERS) for name in names]
    return Loggers([make(run, start=start, settings=settings) for make in made])


class Loggers:
    """All loggers behind one thread, so that no disk and no network makes a step wait or fail."""

    def __init__(self, loggers: Sequence[Logger]):
        self._loggers = list(loggers)
        self._waiting: deque[tuple[str, tuple]] = deque()
        self._wake = threading.Condition()
        self._busy = self._closed = False
        self._dropped = 0
        self._warned: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name="loggers", daemon=True)
        self._thread.start()

    def log(self, step: int, values: dict[str, float]):
        self._put("log", step, values)

    def report(self, path: str):
        self._put("report", path)

    def flush(self) -> bool:
        """Wait until all is written, FLUSH_S at most; whether it is."""
        self._put("flush")
        with self._wake:
            done = self._wake.wait_for(lambda: not self._waiting and not self._busy, FLUSH_S)
        if not done:
            self._warn("flush", f"nothing could be written for {FLUSH_S:g} s")
        return done

    def close(self):
        self.flush()
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(FLUSH_S)

    def _put(self, call: str, *arguments):
        with self._wake:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self._dropped += 1
                self._warn(
                    "queue", f"{self._dropped} records were dropped: the storage is too slow"
                )
            self._waiting.append((call, arguments))
            self._wake.notify_all()

    def _work(self):
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    break
                call, arguments = self._waiting.popleft()
                self._busy = True
            self._each(call, *arguments)
        self._each("close")

    def _each(self, call: str, *arguments):
        for logger in self._loggers:
            try:
                getattr(logger, call)(*arguments)
            except Exception as error:  # a log never ends a run
                self._warn(type(logger).__name__, f"{type(error).__name__}: {error}")

    def _warn(self, what: str, text: str):
        now = time.monotonic()
        if now >= self._warned.get(what, 0.0):
            self._warned[what] = now + WARN_EVERY_S
            log.warning("Logging failed (%s): %s. Training continues.", what, text)

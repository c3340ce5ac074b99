"""Where a run's wall time goes, over all its starts: a share for each phase."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from typing import Literal, get_args

from etils import epath

from clip_jax.storage import atomic_write

Phase = Literal[
    "initialising",
    "compiling",
    "waiting_for_data",
    "stepping",
    "evaluating",
    "saving",
    "lost_to_restarts",
]
PHASES = get_args(Phase)
WRITE_EVERY_S = 15.0


class Goodput:
    """A stopwatch that is always in exactly one phase, so that the phases add up to the wall time.

    They are kept in a file, which one process writes and the next start continues.
    """

    def __init__(self, path: epath.PathLike, *, write: bool = True):
        self._path, self._write = epath.Path(path), write
        self._phase: Phase = "initialising"
        self._since = time.monotonic()
        self._written = self._since
        record = _read(self._path)
        seconds = record.get("seconds")
        seconds = seconds if isinstance(seconds, dict) else {}
        self._seconds = {name: _number(seconds.get(name)) for name in PHASES}
        self.starts = int(_number(record.get("starts"))) + 1
        self.end: Literal["done", "preempted", "interrupted"] = "done"  # how this start ends
        if record and record.get("end") not in ("done", "interrupted"):
            # From the last sign of life to now; a wall clock that was set back counts as nothing.
            down = time.time() - (_number(record.get("alive")) or time.time())
            self._seconds["lost_to_restarts"] += max(0.0, down)

    def __enter__(self) -> "Goodput":
        self.save()  # a start that is killed at once counts as well
        return self

    def __exit__(self, kind, error, traceback):
        self.save(end=self.end if kind is None else "error")

    def switch(self, phase: Phase):
        """From now on the time counts for this phase."""
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
        if now - self._written > WRITE_EVERY_S:
            self.save()

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """The time inside the block counts for this phase, then again for the one before."""
        before = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def resumed_from(self, seconds: dict[str, float] | None):
        """What was done after this checkpoint, in an earlier start, is lost.

        Args:
          seconds: `seconds()` as it was saved with the checkpoint; None: there is no checkpoint.
        """
        kept = seconds or {}
        for name in ("compiling", "waiting_for_data", "stepping", "evaluating", "saving"):
            lost = max(0.0, self._seconds[name] - _number(kept.get(name)))
            self._seconds[name] -= lost
            self._seconds["lost_to_restarts"] += lost

    def seconds(self) -> dict[str, float]:
        """The seconds of every phase up to now, over all starts."""
        self.switch(self._phase)
        return {name: round(value, 3) for name, value in self._seconds.items()}

    def save(self, *, end: str | None = None):
        """Write the file; without an `end` it is that of a start that was killed."""
        self._written = time.monotonic()
        if not self._write:
            return
        record = {"seconds": self.seconds(), "starts": self.starts, "alive": time.time()}
        with contextlib.suppress(OSError):  # a full disk must not end a run for its stopwatch
            atomic_write(self._path, json.dumps(record | {"end": end}, indent=1))


def _read(path: epath.Path) -> dict:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _number(value: object) -> float:
    """A finite number of a file that anything may have been written into, else 0."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and math.isfinite(value) else 0.0

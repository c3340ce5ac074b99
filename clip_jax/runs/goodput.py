"""Where a run's wall time goes, over all its starts: a share for each phase."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
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

    Args:
      path: of the file.
      write: whether this is the process that writes it.
      began: when this start began, by `time.monotonic`; None: now.
    """

    def __init__(self, path: epath.PathLike, *, write: bool = True, began: float | None = None):
        self._path, self._write = epath.Path(path), write
        self._phase: Phase = "initialising"
        self._written = time.monotonic()
        self._since = self._written if began is None else began
        record = _read(self._path)
        seconds = record.get("seconds")
        seconds = seconds if isinstance(seconds, dict) else {}
        self._seconds = {name: _number(seconds.get(name)) for name in PHASES}
        self.starts = int(_number(record.get("starts"))) + 1
        self.end: Literal["done", "preempted", "interrupted"] = "done"  # how this start ends
        if record and record.get("end") not in ("done", "interrupted"):
            # From the last sign of life of the start before to the beginning of this one.
            down = _seconds_since(record) - (self._written - self._since)
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
        record["machine"] = {"boot": _boot(), "uptime": _uptime()}
        with contextlib.suppress(OSError):  # a full disk must not end a run for its stopwatch
            atomic_write(self._path, json.dumps(record | {"end": end}, indent=1))


def start_of_process() -> float:
    """When this process began, by `time.monotonic`: imports count as well. Now where unknown."""
    try:
        # Field 22 of proc(5): the time after boot, in clock ticks. The name, the second, may have spaces.
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = _uptime() - int(stat[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        age = 0.0
    return time.monotonic() - max(0.0, age)


def _seconds_since(account: dict) -> float:
    """Since an account was written: by the machine's uptime, which nobody sets, or by the wall clock."""
    machine = account.get("machine")
    if isinstance(machine, dict) and machine.get("boot") == _boot() != "":
        return max(0.0, _uptime() - _number(machine.get("uptime")))
    return max(0.0, time.time() - (_number(account.get("alive")) or time.time()))


def _boot() -> str:
    """What tells this boot of this machine from others; "" where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _uptime() -> float:
    """Seconds since the machine was booted, sleep included."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


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

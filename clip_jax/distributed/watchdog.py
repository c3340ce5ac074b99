"""A thread that ends a process which hangs, after printing where each of its threads stands."""

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from clip_jax.distributed import initialize
from clip_jax.distributed.preemption import RETRY_EXIT_CODE

log = logging.getLogger(__name__)

TICK_S = 0.5
SAY_S = 10.0  # for the stacks to be written, to what may hang as well


class Watchdog:
    """Leaves with the retry code when `beat` was not called for `hang_seconds`. A context manager.

    Args:
      hang_seconds: the longest time between two beats; 0 or less: no watching.
      stacks: the file that the stacks are appended to, besides standard error.
    """

    def __init__(self, hang_seconds: float, stacks: str | os.PathLike | None = None):
        self._limit_s = hang_seconds
        self._stacks = stacks
        self._quiet_s = 0.0
        self._doing = "starting"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit_s > 0:
            self._thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, doing: str = ""):
        """Something was done: the time without a sign of life starts again.

        Args:
          doing: what comes next, for the message; "": the same as before.
        """
        self._quiet_s, self._doing = 0.0, doing or self._doing

    @contextlib.contextmanager
    def allow(self, doing: str, *, extra_seconds: float = 0.0) -> Iterator[None]:
        """For work with a name and a limit of its own, such as compiling; beats on both ends."""
        before = self._doing, self._limit_s
        self._doing, self._limit_s = doing, self._limit_s + extra_seconds
        self.beat()
        try:
            yield
        finally:
            self._doing, self._limit_s = before
            self.beat()

    def _watch(self):
        while not self._stop.wait(TICK_S):
            # Counted in ticks: the time that a stopped or suspended process slept is no hang.
            self._quiet_s += TICK_S
            if self._quiet_s > self._limit_s:
                self._leave()

    def _leave(self):
        index = jax.process_index()
        text = (
            f"HANG: process {index} (pid {os.getpid()}) gave no sign of life for "
            f"{self._limit_s:g} s while {self._doing} (health.hang_seconds). The stacks of all its "
            f"threads follow; it leaves with exit code {RETRY_EXIT_CODE}, start the same command "
            "again.\n"
        )
        # Threads of their own: a pipe that nobody reads, or storage out of reach, keeps no process.
        ways = [threading.Thread(target=way, args=(text,), daemon=True) for way in self._ways()]
        for way in ways:
            way.start()
        deadline = time.monotonic() + SAY_S
        for way in ways:
            way.join(max(0.0, deadline - time.monotonic()))
        if (lifeline := initialize.lifeline()) is not None:
            lifeline.tell(f"process {index} hangs, and so all leave", RETRY_EXIT_CODE)
        os._exit(RETRY_EXIT_CODE)

    def _ways(self) -> tuple[Callable[[str], None], ...]:
        return (self._say,) if self._stacks is None else (self._keep, self._say)

    def _say(self, text: str):
        with contextlib.suppress(Exception):  # it may be closed, or there is none
            _dump(text, sys.__stderr__)

    def _keep(self, text: str):
        with contextlib.suppress(Exception), open(self._stacks, "a", encoding="utf-8") as file:
            _dump(time.strftime("%Y-%m-%dT%H:%M:%S ") + text, file)


def _dump(text: str, file):
    file.write(text)
    file.flush()
    faulthandler.dump_traceback(file, all_threads=True)

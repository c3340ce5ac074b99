"""What a person sees of a run: a live line on a terminal, plain lines elsewhere. It never ends a run."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

LINE_EVERY_S = 10.0  # between two lines in a file or a pipe


class _Tolerant:
    """A text stream whose reader may go and whose disk may be full: what fails is dropped."""

    def __init__(self, stream: io.TextIOBase):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def writelines(self, lines):
        self.write("".join(lines))

    def flush(self):
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def give_up_what_fails(self):
        """Let the interpreter's last flush succeed, so that it does not change the exit code."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())
                self._stream.flush()


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Inside it no print to standard output or error raises, whoever prints."""
    before = sys.stdout, sys.stderr
    streams = [stream and _Tolerant(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in filter(None, streams):
            stream.give_up_what_fails()
        sys.stdout, sys.stderr = before


class Console:
    """Lines, and where a run stands. A context manager.

    Args:
      steps: steps in all.
      start: steps done before.
      shown: whether this process shows anything.
      progress: whether it shows where the run stands, or only what `print` is given.
      unit: what a step is called.
    """

    def __init__(self, steps: int, *, start: int, shown: bool, progress: bool, unit: str = "step"):
        self._unit = unit
        self._shown, self._progress = shown, shown and progress
        self._steps, self._step = steps, start
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = None
        if self._progress and terminal:
            self._bar = tqdm(
                total=steps, initial=start, unit=unit, mininterval=0.2, dynamic_ncols=True
            )
        self._next_line = time.monotonic()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *exc):
        if self._bar is not None:
            self._bar.close()

    def print(self, text: str):
        """A line of its own, above the live one."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._shown:
            print(text, flush=True)

    def restart_clock(self):
        """The time up to now, such as that of compiling, is not in the time left."""
        if self._bar is not None:
            self._bar.start_t = self._bar.last_print_t = time.time()
            self._bar.initial = self._step

    def update(self, step: int):
        if self._bar is not None:
            self._bar.update(step - self._step)
        self._step = step

    def show(self, figures: dict[str, str], *, seconds_a_step: float):
        """Where the run stands: at each call on a terminal, else a line every LINE_EVERY_S."""
        if not self._progress:
            return
        line = ", ".join(f"{name} {value}" if name else value for name, value in figures.items())
        if self._bar is not None:
            self._bar.set_postfix_str(line, refresh=False)
            return
        last = self._step >= self._steps
        if time.monotonic() < self._next_line and not last:
            return
        self._next_line = time.monotonic() + LINE_EVERY_S
        left = "" if last else f", {duration((self._steps - self._step) * seconds_a_step)} left"
        share = 100 * self._step / max(1, self._steps)
        print(f"{self._unit} {self._step}/{self._steps} ({share:.0f} %): {line}{left}", flush=True)


def duration(seconds: float) -> str:
    """Such as "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

"""When a save that failed is tried again, and when a run that cannot save has to stop."""

import contextlib
import logging
import threading
import time

from etils import epath

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 5.0  # before a failed save is tried again; doubled each time
LONGEST_PAUSE_S = 120.0
SLOW_SAVE_S = 60.0  # a save that takes longer is mentioned; doubled each time


class SaveFailed(RuntimeError):
    """No checkpoint could be written for `checkpoint.retry_seconds`."""


class SaveRetries:
    """The failures in a row, by a clock that cannot be set back.

    Args:
      directory: where the checkpoints go.
      retry_seconds: how long nothing may have been saved.
    """

    def __init__(self, directory: epath.Path, retry_seconds: float):
        self._directory, self._retry_s = directory, retry_seconds
        self._since: float | None = None  # when the first of the failures was noticed
        self._count = 0
        self._next_try = 0.0
        self._reason = ""
        self._probe: threading.Thread | None = None
        self._answered = False
        self._mention_at = SLOW_SAVE_S

    @property
    def failing(self) -> bool:
        return self._since is not None

    def succeeded(self, step: int):
        if self.failing:
            log.warning("Checkpoints can be written again: step %d is saved", step)
        self._since, self._count, self._mention_at = None, 0, SLOW_SAVE_S

    def failed(self, what: str, error: Exception | None):
        """Plan the next try and say so. No error: it was another process's."""
        now = time.monotonic()
        self._count += 1
        self._since = now if self._since is None else self._since
        pause = min(FIRST_PAUSE_S * 2 ** (self._count - 1), LONGEST_PAUSE_S)
        self._next_try = now + pause
        text = "another process failed" if error is None else f"{type(error).__name__}: {error}"
        self._reason = f"{what}: {text.splitlines()[0][:500]}"
        log.error(
            "SAVING FAILED (%d in a row), %s. Training continues; the next try is in %.0f s, and the "
            "run stops in %.0f s if none succeeds. Is there room in %s, and can it be reached?",
            *(self._count, self._reason, pause, self._left(now), self._directory),
        )

    def may_try(self) -> bool:
        """Whether it is time, and the storage answers: asked beside the training, as it may hang."""
        if self._probe is not None and not self._probe.is_alive():
            self._probe = None
            if self._answered:
                return True
        if self._probe is None and time.monotonic() >= self._next_try:
            self._answered = False
            self._probe = threading.Thread(target=self._ask, name="storage_probe", daemon=True)
            self._probe.start()
        return False

    def pause(self):
        """Sleep until it is time, for a save that training waits for."""
        if self.failing:
            time.sleep(max(0.0, self._next_try - time.monotonic()))

    def hopeless(self, saving_since: float | None) -> bool:
        """Whether the run should stop. `saving_since`: when a save began that is not done yet."""
        now = time.monotonic()
        if saving_since is not None and now - saving_since > self._mention_at:
            log.warning("Writing a checkpoint has taken %.0f s so far", now - saving_since)
            self._mention_at *= 2
        if saving_since is not None and now - saving_since > self._retry_s:
            self._reason = f"a save was not done after {now - saving_since:.0f} s"
            return True
        return self.failing and self._left(now) <= 0

    def last_words(self, newest_step: int) -> SaveFailed:
        return SaveFailed(
            f"No checkpoint could be written to {self._directory} for checkpoint.retry_seconds="
            f"{self._retry_s:g} ({self._reason}). Make room or mend the connection and start the "
            f"same command again; it resumes from step {newest_step}."
        )

    def _left(self, now: float) -> float:
        return self._retry_s - (now - self._since)

    def _ask(self):
        probe = self._directory / ".probe"
        try:
            probe.write_text("")
            self._answered = True
        except Exception as error:
            self.failed("the storage does not answer", error)
            return
        with contextlib.suppress(Exception):
            probe.unlink()

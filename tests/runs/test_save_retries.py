"""Trying again: when, how loudly, and for how long."""

import logging
import re

import pytest
from etils import epath

from clip_jax.runs import save_retries
from clip_jax.runs.save_retries import SaveRetries


class Clock:
    def __init__(self):
        self.now = 100.0
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float):
        self.now += seconds
        self.slept += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(save_retries, "time", clock)
    return clock


FULL = OSError(28, "No space left on device")


def ask(retries: SaveRetries) -> bool:
    """What `may_try` says once the storage had the time to answer."""
    if retries.may_try():
        return True
    if retries._probe is None:
        return False
    retries._probe.join()
    return retries.may_try()


def test_pauses_double_up_to_a_limit_and_a_success_ends_them(tmp_path, clock, caplog):
    retries = SaveRetries(epath.Path(tmp_path), 1e6)
    waits = []
    for _ in range(7):
        retries.failed("step 3", FULL)
        assert not ask(retries)
        before = clock.slept
        retries.pause()
        waits.append(clock.slept - before)
        assert ask(retries)
    assert waits == [5, 10, 20, 40, 80, 120, 120]
    assert "SAVING FAILED (7 in a row), step 3: OSError: [Errno 28] No space left" in caplog.text
    retries.succeeded(9)
    assert "can be written again: step 9 is saved" in caplog.text
    assert not retries.failing
    retries.pause()
    assert clock.slept == sum(waits)
    assert list(tmp_path.iterdir()) == []


def test_training_does_not_wait_for_a_storage_that_does_not_answer(tmp_path, clock, caplog):
    retries = SaveRetries(epath.Path(tmp_path / "gone"), 600)
    retries.failed("step 3", FULL)
    clock.now += 6
    assert not ask(retries)  # it failed beside the training, and the pause begins again
    assert "the storage does not answer: FileNotFoundError" in caplog.text
    clock.now += 6
    assert not ask(retries)
    (tmp_path / "gone").mkdir()
    clock.now += 60
    assert ask(retries)


def test_a_run_that_cannot_save_stops_after_the_given_time_and_no_earlier(tmp_path, clock):
    retries = SaveRetries(epath.Path(tmp_path), 60)
    assert not retries.hopeless(None)
    retries.failed("step 3", FULL)
    clock.now += 59
    retries.failed("step 5", None)
    assert not retries.hopeless(None)
    clock.now += 1
    assert retries.hopeless(None)
    assert "(step 5: another process failed)" in str(retries.last_words(2))
    assert "resumes from step 2" in str(retries.last_words(2))
    retries.succeeded(7)
    assert not retries.hopeless(None)


def test_a_save_that_never_ends_is_mentioned_and_then_given_up(tmp_path, clock, caplog):
    retries = SaveRetries(epath.Path(tmp_path), 600)
    began = clock.now
    with caplog.at_level(logging.WARNING):
        for _ in range(59):
            clock.now += 10
            assert not retries.hopeless(began)
    said = [int(re.search(r"taken (\d+) s", text).group(1)) for text in caplog.messages]
    assert said == [70, 130, 250, 490]
    clock.now += 20
    assert retries.hopeless(began)
    assert "a save was not done after 610 s" in str(retries.last_words(0))

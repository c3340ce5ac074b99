"""Goodput: phases that add up, across restarts, whatever the wall clock does."""

import contextlib
import json
import random
import subprocess
import sys
import time

import pytest

from clip_jax.runs import goodput as goodput_lib
from clip_jax.runs.goodput import PHASES, Goodput


class Clock:
    """Stands in for the time module; all clocks advance together until one is set."""

    CLOCK_BOOTTIME = 7

    def __init__(self):
        self.now, self.offset = 0.0, 1e9

    def clock_gettime(self, which: int) -> float:
        assert which == self.CLOCK_BOOTTIME
        return self.now + 1e5

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.offset


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(goodput_lib, "time", clock)
    return clock


def spend(goodput: Goodput, clock: Clock, **seconds: float):
    for phase, value in seconds.items():
        with goodput.phase(phase):
            clock.now += value


def test_phases_nest_and_add_up_to_the_wall_time(tmp_path, clock):
    with Goodput(tmp_path / "goodput.json") as goodput:
        clock.now += 3
        goodput.switch("stepping")
        clock.now += 10
        with goodput.phase("evaluating"):
            clock.now += 1
            spend(goodput, clock, waiting_for_data=2)
            clock.now += 1
        clock.now += 5
        expected = {"initialising": 3, "stepping": 15, "evaluating": 2, "waiting_for_data": 2}
        assert goodput.seconds() == dict.fromkeys(PHASES, 0.0) | expected


def test_work_after_the_restored_checkpoint_and_the_time_down_are_lost(tmp_path, clock):
    first = Goodput(tmp_path / "goodput.json")
    spend(first, clock, initialising=5, stepping=100)
    at_checkpoint = first.seconds()
    spend(first, clock, stepping=30, waiting_for_data=4)
    first.save()
    clock.now += 60  # killed; started again a minute later
    with Goodput(tmp_path / "goodput.json") as second:
        second.resumed_from(at_checkpoint)
        seconds = second.seconds()
        assert second.starts == 2
    assert seconds["stepping"] == 100 and seconds["waiting_for_data"] == 0
    assert seconds["lost_to_restarts"] == 30 + 4 + 60
    assert sum(seconds.values()) == clock.now


def test_all_is_lost_without_a_checkpoint(tmp_path, clock):
    first = Goodput(tmp_path / "goodput.json")
    spend(first, clock, initialising=5, compiling=7, stepping=30)
    first.save()
    with Goodput(tmp_path / "goodput.json") as second:
        second.resumed_from(None)
        assert second.seconds()["lost_to_restarts"] == 37
        assert second.seconds()["initialising"] == 5


@pytest.mark.parametrize(
    ("end", "lost"), [("done", 0), ("interrupted", 0), ("preempted", 60), (None, 60)]
)
def test_the_time_between_starts_is_lost_unless_a_person_wanted_it(tmp_path, clock, end, lost):
    with pytest.raises(OSError) if end is None else Goodput(tmp_path / "g.json") as first:
        if end is None:
            with Goodput(tmp_path / "g.json"):
                raise OSError
        first.end = end
    clock.now += 60
    with Goodput(tmp_path / "g.json") as second:
        assert second.seconds()["lost_to_restarts"] == lost


def test_a_run_of_many_starts_adds_up_to_the_wall_time(tmp_path, clock):
    """Starts that were killed at once, later, without a checkpoint and before anything was saved."""
    rng, kept = random.Random(0), None
    for _ in range(50):
        began = clock.now
        clock.now += rng.uniform(1, 9)  # imports
        goodput = Goodput(tmp_path / "goodput.json", began=began)
        if rng.random() < 0.2:
            clock.now += 3  # killed, unnoticed by anybody
            continue
        with contextlib.suppress(KeyboardInterrupt), goodput:
            goodput.resumed_from(kept)
            for _ in range(rng.randrange(9)):
                spend(goodput, clock, waiting_for_data=1, stepping=7.5, saving=rng.random())
                kept = goodput.seconds()
            clock.offset += rng.uniform(-1e5, 1e5)  # somebody sets the wall clock
            goodput.end = "preempted"
        clock.now += rng.uniform(0, 20)  # until a launcher starts it again
    with Goodput(tmp_path / "goodput.json", began=clock.now) as goodput:
        assert sum(goodput.seconds().values()) == pytest.approx(clock.now, rel=1e-3)
        assert goodput.starts < 51  # those that were killed before the account was open


def test_the_time_of_another_machine_is_the_wall_clock_s(tmp_path, clock, monkeypatch):
    first = Goodput(tmp_path / "goodput.json")
    spend(first, clock, stepping=10)
    first.save()
    clock.now += 60
    monkeypatch.setattr(goodput_lib, "_boot", lambda: "another machine")
    clock.offset += 5
    with Goodput(tmp_path / "goodput.json") as second:
        assert second.seconds()["lost_to_restarts"] == 65


def test_a_process_knows_when_it_began():
    code = "import time; from clip_jax.runs.goodput import start_of_process as start; "
    code += "print(time.monotonic() - start())"
    began = time.monotonic()
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Ticks of the kernel are hundredths of a second.
    assert 0 < float(said.stdout) <= time.monotonic() - began + 0.02


def test_a_clock_that_is_set_back_takes_no_time_away(tmp_path, clock):
    first = Goodput(tmp_path / "goodput.json")
    spend(first, clock, stepping=10)
    first.save()
    clock.offset -= 1e6
    with Goodput(tmp_path / "goodput.json") as second:
        spend(second, clock, stepping=10)
        seconds = second.seconds()
    assert seconds["stepping"] == 20 and seconds["lost_to_restarts"] == 0


def test_the_account_is_written_now_and_then_and_one_process_writes_it(tmp_path, clock):
    with (
        Goodput(tmp_path / "main.json") as main,
        Goodput(tmp_path / "other.json", write=False) as other,
    ):
        for _ in range(20):
            spend(main, clock, stepping=1)
            spend(other, clock, stepping=1)
        assert json.loads((tmp_path / "main.json").read_text())["seconds"]["stepping"] >= 15
    assert [path.name for path in tmp_path.iterdir()] == ["main.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"seconds": {}}'])
def test_a_spoilt_account_starts_afresh(tmp_path, content):
    (tmp_path / "goodput.json").write_text(content)
    with Goodput(tmp_path / "goodput.json") as goodput:
        assert sum(goodput.seconds().values()) < 5

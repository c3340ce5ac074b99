"""Goodput: phases that add up, across restarts, whatever the wall clock does."""

import json

import pytest

from clip_jax.runs import goodput as goodput_lib
from clip_jax.runs.goodput import PHASES, Goodput


class Clock:
    """Stands in for the time module; both clocks advance together until one is set."""

    def __init__(self):
        self.now, self.offset = 0.0, 1e9

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

"""Loggers: nothing that they do or suffer reaches the training."""

import threading
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from clip_jax.runs import loggers as loggers_lib
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.loggers import Logger, Loggers, make_loggers


@pytest.fixture
def run(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        yield directory


class Broken(Logger):
    def log(self, step, values):
        raise OSError("No space left on device")


class Slow(Logger):
    def log(self, step, values):
        Slow.gate.wait(20)


class Kept(Logger):
    lines = ()

    def log(self, step, values):
        Kept.lines += ((step, values),)


def events(run) -> list[tuple[int, str, float]]:
    """Scalars as TensorBoard shows them: a later file's start mark purges what it does again."""
    found = []
    for path in sorted(run.path.glob("events.out.tfevents.*"), key=lambda p: p.stat().mtime):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.HasField("session_log"):
                found = [one for one in found if one[0] < event.step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.append((event.step, value.tag, value.simple_value))
    return found


def test_a_failing_logger_is_a_warning_and_the_others_go_on(run, caplog):
    made = Loggers([Broken(run, start=0, settings={}), Kept(run, start=0, settings={})])
    Kept.lines = ()
    for step in range(3):
        made.log(step, {"loss": 1.0})
    made.close()
    assert [step for step, _ in Kept.lines] == [0, 1, 2]
    warnings = [r.message for r in caplog.records if "No space left" in r.message]
    assert len(warnings) == 1 and "Training continues" in warnings[0]


def test_a_slow_logger_keeps_no_step_waiting_and_its_memory_is_bounded(run, monkeypatch):
    monkeypatch.setattr(loggers_lib, "MOST_WAITING", 10)
    monkeypatch.setattr(loggers_lib, "FLUSH_S", 0.1)
    Slow.gate = threading.Event()
    made = Loggers([Slow(run, start=0, settings={})])
    began = time.monotonic()
    for step in range(1000):
        made.log(step, {"loss": 1.0})
    assert time.monotonic() - began < 5
    assert len(made._waiting) <= 10
    assert not made.flush()
    Slow.gate.set()
    made.close()


def test_a_logger_from_outside_needs_no_line_in_the_table(run, tmp_path, monkeypatch):
    (tmp_path / "own_loggers.py").write_text(
        "from clip_jax.runs.loggers import Logger\n"
        "class Csv(Logger):\n"
        "    def log(self, step, values):\n"
        "        with open(self.run.path / 'own.csv', 'a') as file:\n"
        "            print(step, values['loss'], self.settings['seed'], sep=',', file=file)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made = make_loggers(("jsonl", "own_loggers:Csv"), run, start=0, settings={"seed": 3})
    made.log(1, {"loss": 0.5})
    made.close()
    assert (run.path / "own.csv").read_text() == "1,0.5,3\n"
    assert run.metrics() == [{"step": 1, "loss": 0.5}]


def test_steps_that_are_done_again_stand_once_in_tensorboard(run):
    first = make_loggers(("tensorboard",), run, start=0, settings={"seed": 0})
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    first.close()
    time.sleep(1.1)  # the files of two starts have other names
    again = make_loggers(("tensorboard",), run, start=2, settings={"seed": 0})
    for step in (3, 4, 5):
        again.log(step, {"loss": 10.0 * step})
    again.close()
    scalars = [(step, value) for step, tag, value in events(run) if tag == "train/loss"]
    assert scalars == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]


def test_an_unknown_logger_is_refused_with_the_nearest(run):
    with pytest.raises(
        ValueError, match=r"logging.loggers='tensorbord' .*nearest is 'tensorboard'"
    ):
        make_loggers(("tensorbord",), run, start=0, settings={})

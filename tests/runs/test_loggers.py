"""Loggers: nothing that they do or suffer reaches the training."""

import importlib.machinery
import math
import os
import subprocess
import sys
import threading
import time
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from clip_jax.runs import loggers as loggers_lib
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.loggers import JsonLines, Logger, Loggers, check_loggers, make_loggers


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
    for path in sorted(run.path.glob("events.out.tfevents.*"), key=lambda path: path.name):
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
    made = Loggers([lambda kind=kind: kind(run, start=0, settings={}) for kind in (Broken, Kept)])
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
    made = Loggers([lambda: Slow(run, start=0, settings={})])
    began = time.monotonic()
    for step in range(1000):
        made.log(step, {"loss": 1.0})
    assert time.monotonic() - began < 5
    assert len(made._writers[0]._waiting) <= 10
    assert not made.flush()
    Slow.gate.set()
    made.close()


def test_a_logger_that_opens_slowly_keeps_neither_a_checkpoint_nor_another_logger_waiting(run):
    opened = threading.Event()
    Kept.lines = ()

    def slowly():
        assert opened.wait(20)
        return Kept(run, start=0, settings={})

    made = Loggers([slowly, lambda: JsonLines(run, start=0, settings={})])
    made.log(1, {"loss": 0.5})
    while made._writers[1].is_opening:
        time.sleep(0.001)
    assert made.flush()
    assert run.metrics() == [{"step": 1, "loss": 0.5}]
    opened.set()
    made.close()
    assert Kept.lines == ((1, {"loss": 0.5}),)  # nothing of it is lost


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


def test_steps_that_are_done_again_stand_once_in_tensorboard(run, monkeypatch):
    """Also of starts in one second, and where the clock was set back between two of them."""
    first = make_loggers(("tensorboard",), run, start=0, settings={"seed": 0})
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    first.close()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000)
    again = make_loggers(("tensorboard",), run, start=2, settings={"seed": 0})
    for step in (3, 4, 5):
        again.log(step, {"loss": 10.0 * step})
    again.close()
    scalars = [(step, value) for step, tag, value in events(run) if tag == "train/loss"]
    assert scalars == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]


def test_tensorboard_has_of_the_resumed_step_what_metrics_jsonl_has(run):
    """A kill may cut off what was not flushed, or leave an evaluation that is repeated."""
    kinds = ("jsonl", "tensorboard")
    first = make_loggers(kinds, run, start=0, settings={})
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step)})
    first.log(2, {"eval/loss": 20.0})  # which is repeated
    first.close()
    run.append_metrics({"step": 1, "note": "a person wrote this"})
    run.rewind_metrics(2, evaluated=False)
    second = make_loggers(kinds, run, start=2, settings={})
    second.log(2, {"eval/loss": 20.0, "eval/top1": float("nan")})
    second.close()
    os.remove(sorted(run.path.glob("events.*"))[-1])  # it was never flushed
    run.rewind_metrics(2)
    third = make_loggers(kinds, run, start=2, settings={})
    third.log(3, {"loss": 30.0})
    third.close()
    train = [(1, "train/loss", 1.0), (2, "train/loss", 2.0), (3, "train/loss", 30.0)]
    shown = sorted(events(run))
    assert [one for one in shown if one[1] != "eval/top1"] == sorted(
        [*train, (2, "eval/loss", 20.0)]
    )
    assert [math.isnan(one[2]) for one in shown if one[1] == "eval/top1"] == [True]


def test_an_unknown_logger_is_refused_with_the_nearest(run):
    with pytest.raises(
        ValueError, match=r"logging.loggers='tensorbord' .*nearest is 'tensorboard'"
    ):
        make_loggers(("tensorbord",), run, start=0, settings={})


def test_a_logger_that_cannot_be_opened_is_a_warning(run, caplog):
    def refuse():
        raise ConnectionError("api.example.org does not answer")

    Kept.lines = ()
    made = Loggers([refuse, lambda: Kept(run, start=0, settings={})])
    made.log(1, {"loss": 1.0})
    made.close()
    assert Kept.lines == ((1, {"loss": 1.0}),)
    assert "refuse): it cannot be opened, ConnectionError: api.example.org" in caplog.text


class StandIn(types.ModuleType):
    """A wandb that notes its calls; `summary` is what its server knows of the run."""

    def __init__(self, summary: dict):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.calls, self.logged, self.summary = [], [], summary
        self.config, self.finish = self, lambda: self.calls.append("finish")

    def init(self, **settings):
        self.settings = settings
        return self

    def update(self, settings, *, allow_val_change):
        assert allow_val_change
        self.hyperparameters = settings

    def define_metric(self, name, step_metric=None):
        self.calls.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def Settings(self, **settings):
        return settings

    def Html(self, text):
        return ("html", text)


@pytest.fixture
def wandb(monkeypatch):
    """`wandb(summary)`: a stand-in from now on."""

    def make(**summary) -> StandIn:
        module = StandIn(summary)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return make


def test_figures_hyperparameters_and_the_report_go_to_wandb(run, wandb):
    module = wandb()
    secret = {"seed": 3, "data.source": ["https://user:secret@example.org/a.csv"]}
    made = make_loggers(("wandb",), run, start=0, settings=secret)
    made.log(1, {"loss": 0.5})
    made.log(2, {"loss": 0.25})
    made.log(2, {"eval/loss": 0.75})
    page = run.path / "report.html"
    page.write_text("<p>report</p>")
    made.report(str(page))
    made.close()
    assert module.hyperparameters["seed"] == 3 and "secret" not in str(module.hyperparameters)
    assert module.calls == [("step", None), ("*", "step"), "finish"]
    assert module.logged == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
        {"step": 2, "eval/loss": 0.75},
        {"report": ("html", "<p>report</p>")},
    ]
    assert module.settings["dir"] == str(run.path)
    assert module.settings["settings"] == {"console": "off"}  # it must not replace the streams


def test_a_resumed_run_is_the_same_one_in_wandb_and_has_each_step_once(run, wandb):
    first = wandb()
    make_loggers(("wandb",), run, start=0, settings={}).close()
    again = wandb(step=4)  # that of the checkpoint is 2
    made = make_loggers(("wandb",), run, start=2, settings={"steps": 9})
    for step in (3, 4, 5):
        made.log(step, {"loss": 1.0 * step})
    made.log(4, {"eval/loss": 2.0})
    made.close()
    assert again.settings["id"] == first.settings["id"] and again.settings["resume"] == "allow"
    assert again.logged == [{"step": 5, "loss": 5.0}, {"step": 4, "eval/loss": 2.0}]


def test_wandb_that_is_not_installed_is_refused_before_the_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        check_loggers(("jsonl", "wandb"))


def test_wandb_itself_writes_a_run_without_a_network(run):
    """In a process of its own, because it starts a service."""
    pytest.importorskip("wandb", exc_type=ImportError)
    code = (
        "from clip_jax.runs.directory import RunDirectory\n"
        "from clip_jax.runs.loggers import make_loggers\n"
        f"run = RunDirectory({str(run.path)!r})\n"
        "made = make_loggers(('wandb',), run, start=0, settings={'seed': 345671})\n"
        "made.log(1, {'loss': 0.5})\n"
        "made.close()\n"
    )
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Logging failed" not in done.stderr, done.stderr
    (kept,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    content = kept.read_bytes()
    assert b"345671" in content and b"loss" in content

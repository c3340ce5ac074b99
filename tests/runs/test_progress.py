"""What is logged of a run: where, when, and what the devices made of their time."""

import json
import re

import jax
import pytest

from clip_jax.config import LoggingConfig
from clip_jax.hardware import CHIPS
from clip_jax.runs import progress as lib
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.progress import Progress, memory, utilisation


class Device:
    def __init__(self, kind: str, peak: int | None = None):
        self.device_kind, self.peak = kind, peak

    def memory_stats(self):
        return None if self.peak is None else {"peak_bytes_in_use": self.peak}


@pytest.fixture
def devices(monkeypatch):
    """`devices(kind, peaks)`: JAX has one device for each peak."""

    def make(kind: str, *peaks: int | None):
        found = [Device(kind, peak) for peak in peaks]
        monkeypatch.setattr(jax, "devices", lambda: found)
        monkeypatch.setattr(jax, "local_devices", lambda: found)
        monkeypatch.setattr(jax, "device_count", lambda: len(found))

    return make


@pytest.fixture
def clock(monkeypatch):
    """`clock[0]` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(lib.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def run(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        yield directory


def start(run, *, first: int = 0, **settings) -> Progress:
    cfg = LoggingConfig(**{"every_steps": 10, "progress": False, "loggers": ("jsonl",)} | settings)
    return Progress(run, cfg, start=first, steps=45, batch_size=64, flops=1e9)


def test_due_steps_are_logged_and_the_last_one_is_due(run):
    with start(run, first=20) as log:
        for step in range(21, 46):
            log.step(step, {"loss": 1.0})
    assert [line["step"] for line in run.metrics()] == [30, 40, 45]


def test_speed_is_of_the_steps_since_the_last_line_and_not_of_an_evaluation(run, clock):
    with start(run) as log:
        clock[0] += 4
        log.waited(1.0)
        log.step(10, {"loss": 1.0})
        clock[0] += 1000  # an evaluation
        log.restart_clock()
        clock[0] += 2
        log.step(20, {"loss": 0.5})
    first, second = run.metrics()
    assert (first["images_per_second"], second["images_per_second"]) == (160, 320)
    assert (first["data_wait_share"], second["data_wait_share"]) == (0.25, 0)
    assert (first["samples_seen"], second["samples_seen"]) == (640, 1280)


def test_a_run_that_goes_on_does_not_count_the_steps_before(run, clock):
    with start(run, first=20) as log:
        clock[0] += 10
        log.step(30, {"loss": 1.0})
    assert run.metrics()[0]["images_per_second"] == 64
    assert run.metrics()[0]["samples_seen"] == 30 * 64


@pytest.mark.parametrize("name", ["a100", "h200", "v5e"])
def test_utilisation_is_the_models_share_of_the_chips_peak(devices, name):
    kinds = {"a100": "NVIDIA A100-SXM4-80GB", "h200": "NVIDIA H200", "v5e": "TPU v5 lite"}
    devices(kinds[name], None, None)
    found = utilisation(200.0, 1e12)  # a pair of 1 TFLOP, 100 images a second on each
    assert found["images_per_second_per_chip"] == 100
    assert found["tflops_per_second_per_chip"] == pytest.approx(100)
    assert found["mfu"] == pytest.approx(100 / CHIPS[name].tflops)


def test_two_devices_that_are_one_chip_count_as_one(devices):
    devices("TPU v3", None, None, None, None)
    found = utilisation(200.0, 1e11)
    assert found["images_per_second_per_chip"] == 100
    assert found["mfu"] == pytest.approx(10 / CHIPS["v3"].tflops)


def test_an_unknown_chip_has_no_utilisation(devices):
    devices("cpu", None, None)
    found = utilisation(200.0, 1e12)
    assert found["tflops_per_second_per_chip"] == pytest.approx(100)
    assert "mfu" not in found


def test_memory_is_that_of_the_fullest_device(devices):
    devices("NVIDIA H200", 2 * 2**30, 5 * 2**30, None)
    assert memory() == {"peak_memory_gib": 5.0}
    devices("cpu", None)
    assert memory() == {}


def test_the_lines_and_the_events_hold_the_same_figures(run):
    with start(run, loggers=("jsonl", "tensorboard"), every_steps=1) as log:
        log.step(1, {"loss": 0.123456789})
        log.write(1, {"eval/loss": 2.0})
    lines = run.metrics()
    assert lines[0]["loss"] == 0.1234568  # as many digits as float32 has
    assert lines[1] == {"step": 1, "eval/loss": 2.0}
    (events,) = run.path.glob("events.out.tfevents.*")
    names = {name.decode() for name in re.findall(rb"(?:train|eval)/\w+", events.read_bytes())}
    assert names >= {"train/loss", "eval/loss", "train/tflops_per_second_per_chip"}
    assert json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


def test_processes_other_than_the_main_one_show_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with start(run, progress=True, loggers=("jsonl", "tensorboard")) as log:
        log.print("a line")
        log.step(10, {"loss": 1.0})
    assert not list(run.path.glob("events*"))
    assert capsys.readouterr().err == ""

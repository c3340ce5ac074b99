"""The run directory: one owner, whole files, metrics that go back with the checkpoint."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip_jax.config import DataConfig, ModelConfig, TrainConfig
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.runs import directory
from clip_jax.runs.directory import RunDirectory

HOLD = """
import sys, os, time
from clip_jax.runs.directory import RunDirectory
with RunDirectory(sys.argv[1]):
    # A child says it itself, when it has come to life.
    if sys.argv[2] == "plain" or os.fork() == 0:
        print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that owns `tmp_path`; what is left of its group is killed at the end."""
    started = []

    def start(how: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), how],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_a_second_run_in_the_same_folder_is_refused_by_the_name_of_the_first(tmp_path, holder):
    first = holder("plain")
    with pytest.raises(ValueError, match=f"in use by process {first.pid} on .*--workdir"):
        RunDirectory(tmp_path).__enter__()
    with RunDirectory(tmp_path, main=False) as run:  # a reader may look
        assert run.metrics() == []


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_the_lock_of_a_killed_run_is_free_even_if_a_child_of_it_lives(tmp_path, holder, how):
    first = holder(how)
    first.kill()
    first.wait()
    with RunDirectory(tmp_path) as run:
        assert f"process {os.getpid()} on" in (run.path / "run.lock").read_text()


def test_the_lock_is_free_after_the_run(tmp_path):
    for _ in range(2):
        with RunDirectory(tmp_path):
            pass


@pytest.mark.parametrize("place", ["file/run", "/proc/run", "/sys/run"])
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, place):
    (tmp_path / "file").write_text("")
    path = tmp_path / place
    with pytest.raises(ValueError, match=rf"workdir={path} cannot be written \(.*--workdir"):
        RunDirectory(path).__enter__()


def test_a_name_that_is_no_text_is_refused_before_anything_is_written_there():
    """Python reads bytes that are not UTF-8, or a path in the locale C, in this way."""
    name = os.fsdecode(b"/tmp/run-\xff")
    with pytest.raises(ValueError, match=r"'/tmp/run-.udcff' .* is not UTF-8"):
        RunDirectory(name)


@pytest.mark.parametrize("model", [ModelConfig(), ModelConfig(vision=ResNetConfig(heads=32))])
def test_settings_come_back_as_they_were(tmp_path, model):
    cfg = TrainConfig(seed=3, data=DataConfig(source=("shapes", "pairs:a.csv"), weights=(1, 0.5)))
    with RunDirectory(tmp_path / "run") as run:
        assert run.load_config() is None and run.load_model_config() is None
        run.save_config(cfg, model)
        here = dataclasses.replace(cfg, workdir=os.fspath(run.path))  # a moved run resumes itself
        assert run.load_config() == here
        assert run.load_model_config() == model


def test_half_a_settings_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": ')
    with (
        RunDirectory(tmp_path) as run,
        pytest.raises(ValueError, match=r"config\.json is not JSON"),
    ):
        run.load_config()


@pytest.mark.parametrize("content", ["3", "[]", "null", '"text"'])
def test_a_file_that_is_json_but_no_object_is_named(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=r"data\.json is not a JSON object: restore or remove"):
        RunDirectory(tmp_path, main=False).read_json("data.json")


def test_secrets_stay_out_of_the_files(tmp_path):
    cfg = TrainConfig(data=DataConfig(source=("tar:https://me:word@host/a.tar?sig=s3cr3t",)))
    with RunDirectory(tmp_path) as run:
        run.save_config(cfg, ModelConfig())
        run.append_metrics({"step": 1, "note": "https://me:word@host"})
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "word" not in text and "s3cr3t" not in text and "***@host/a.tar?sig=***" in text


def test_a_crash_while_a_file_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    with RunDirectory(tmp_path) as run:
        run.write_json("config.json", {"seed": 1})

        def crash(descriptor):
            raise KeyboardInterrupt

        monkeypatch.setattr(directory.os, "fsync", crash)
        with pytest.raises(KeyboardInterrupt):
            run.write_json("config.json", {"seed": 2})
        assert run.read_json("config.json") == {"seed": 1}
    assert [path.name for path in tmp_path.glob(".*")] == []  # half a file would fill a full disk


def test_what_kills_have_left_of_half_written_files_is_removed(tmp_path):
    left = [
        tmp_path / ".goodput.json.4711.partial",
        tmp_path / "checkpoints" / ".evaluations.json.4711.partial",
        tmp_path / "snapshots" / ".000000004.npz.4711.partial",
    ]
    others = [tmp_path / ".own", tmp_path / "notes.partial"]
    for path in left + others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with RunDirectory(tmp_path, main=False):
        assert all(path.exists() for path in left)
    with RunDirectory(tmp_path):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in others)


def test_metrics_after_the_restored_step_are_removed_and_a_torn_line_too(tmp_path):
    with RunDirectory(tmp_path) as run:
        for step in (10, 20, 30):
            run.append_metrics({"step": step, "loss": 1 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    with RunDirectory(tmp_path) as run:
        assert [line["step"] for line in run.metrics()] == [10, 20, 30]
        run.rewind_metrics(20)
        run.append_metrics({"step": 21, "loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 10, "loss": 0.1},
        {"step": 20, "loss": 0.05},
        {"step": 21, "loss": 0.5},
    ]


def test_an_evaluation_that_is_about_to_be_repeated_is_not_there_twice(tmp_path, monkeypatch):
    lines = [{"step": step, "loss": 0.5} for step in (1, 2, 3)]
    found = [{"step": step, "eval/loss": 1.5, "eval/other/loss": None} for step in (1, 2)]
    with RunDirectory(tmp_path) as run:
        for line in (*lines[:1], *found[:1], *lines[1:2], *found[1:], *lines[2:]):
            run.append_metrics(line)
        run.rewind_metrics(2)
        assert run.metrics() == [lines[0], found[0], lines[1], found[1]]
        assert run.resumed_metrics == run.metrics()
        monkeypatch.setattr(directory, "RESUMED_LINES", 1)
        run.rewind_metrics(2)
        assert run.resumed_metrics == [lines[1], found[1]]  # whole steps
        run.rewind_metrics(2, evaluated=False)
        assert run.metrics() == [lines[0], found[0], lines[1]]
        assert run.resumed_metrics == [lines[1]]
        assert run.metrics() == [lines[0], found[0], lines[1]]


def test_numbers_of_metrics_keep_their_bits_when_lines_are_removed(tmp_path):
    values = [0.1, 1 / 3, 1e-45, 3.4028234663852886e38]
    with RunDirectory(tmp_path) as run:
        run.append_metrics({"step": 1, "values": values})
        run.append_metrics({"step": 2})
        run.rewind_metrics(1)
        assert run.metrics() == [{"step": 1, "values": values}]


def test_only_the_main_process_writes(tmp_path):
    with RunDirectory(tmp_path, main=False) as run:
        run.append_metrics({"step": 1})
        run.write_json("config.json", {})
        run.rewind_metrics(0)
    assert list(Path(tmp_path).iterdir()) == []


def test_metrics_of_a_remote_folder_are_uploaded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(RunDirectory, "is_local", False)
    with RunDirectory(tmp_path) as run:
        for step in (1, 2):
            run.append_metrics({"step": step})
        assert [line["step"] for line in run.metrics()] == [1, 2]
    with RunDirectory(tmp_path) as run:  # the next start continues with them
        run.rewind_metrics(1)
        run.append_metrics({"step": 5})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 5]
    assert not (tmp_path / "run.lock").exists()


def test_a_run_whose_checkpoints_are_gone_is_not_started_anew(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        run.check_checkpoints()  # a new run
        run.append_metrics({"step": 8, "loss": 1.0})
    with RunDirectory(tmp_path / "run") as run:
        with pytest.raises(
            ValueError, match=r"has done 8 steps, and .*checkpoints has no checkpoint"
        ):
            run.check_checkpoints()
        run.checkpoints.mkdir()
        run.check_checkpoints()  # it was ended before its first save
        run.note_saved(4)
        with pytest.raises(ValueError, match="has done 4 steps"):
            run.check_checkpoints()
        (run.checkpoints / "4").mkdir()
        run.check_checkpoints()


def test_figures_that_are_not_finite_are_null_and_every_line_is_json(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        run.append_metrics({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
        (line,) = (run.path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line, parse_constant=pytest.fail) == {
            "step": 1,
            "loss": None,
            "grad_norm": None,
        }


@pytest.mark.parametrize("spoilt", [b"3\n", b"\xff\xfe\n", b"[]\n", b'{"step": "x"}\n', b'{"st'])
def test_a_spoilt_line_of_metrics_is_passed_over_and_the_next_is_whole(tmp_path, spoilt):
    with RunDirectory(tmp_path / "run") as run:
        run.append_metrics({"step": 1})
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(spoilt)
    with RunDirectory(tmp_path / "run") as run:
        run.append_metrics({"step": 2})
        assert [line["step"] for line in run.metrics()] == [1, 2]


def test_a_deleted_lock_file_does_not_let_a_second_run_in(tmp_path, holder):
    holder("plain")
    (tmp_path / "run.lock").unlink()
    with pytest.raises(ValueError, match="in use by another process"):
        RunDirectory(tmp_path).__enter__()


def test_a_metrics_file_that_is_a_folder_ends_nothing(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()
    with RunDirectory(tmp_path) as run:
        assert run.metrics() == []
        run.rewind_metrics(3)
    assert "metrics.jsonl cannot be read" in caplog.text

"""Two real processes that train together: what the one says and does when the other is in trouble."""

import contextlib
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from command import Command

RETRY = 75
pytestmark = pytest.mark.usefixtures("programs")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A list of captions of one image."""
    from PIL import Image

    place = tmp_path_factory.mktemp("pairs")
    Image.new("RGB", (20, 20), (200, 10, 10)).save(place / "red.png")
    lines = [f"red.png,thing number {number} of {number % 5}" for number in range(48)]
    (place / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    return place / "captions.csv"


@pytest.fixture
def start(pairs, tmp_path):
    """`start(*of each process (arguments, fault))` trains in that many processes of one run."""

    @contextlib.contextmanager
    def started(*each: tuple[list[str], str | None], processes: int | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        arguments = [
            "train",
            *("--workdir", str(tmp_path / "run"), "--steps", "6"),
            *("--model.name", "ViT-test", "--model.dtype", "float32"),
            *("--data.source", f"pairs:{pairs}", "--data.batch-size", "8", "--data.threads", "1"),
            *("--optimizer.warmup-steps", "2", "--evaluation.batch-size", "8"),
            *("--checkpoint.every-steps", "2", "--logging.every-steps", "1"),
            *("--logging.loggers", "jsonl", "--logging.no-report"),
            *("--distributed.coordinator", address),
            *("--distributed.processes", str(processes or len(each))),
        ]
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(
                    Command(
                        *arguments,
                        *("--distributed.process-index", str(index), *more),
                        output=tmp_path / f"{index}.txt",
                        fault=fault,
                    )
                )
                for index, (more, fault) in enumerate(each)
            ]

    return started


def test_processes_with_other_settings_are_told_in_what_they_differ(start):
    with start(([], None), (["--optimizer.b1", "0.8"], None)) as both:
        for command in both:
            assert command.end() == 2, command.text
            assert "process 1 on" in command.text
            assert "setting optimizer.b1 (0.8, where process 0 has 0.9)" in command.text


@pytest.mark.parametrize("change", ["other captions", "another order", "fewer lines"])
def test_hosts_that_read_other_data_under_one_name_are_told_so(start, tmp_path, pairs, change):
    header, *lines = pairs.read_text().splitlines()
    changed = {
        "other captions": [line + "!" for line in lines],
        "another order": lines[::-1],
        "fewer lines": lines[:40],
    }[change]
    for number, kept in enumerate((lines, changed)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "red.png").write_bytes((pairs.parent / "red.png").read_bytes())
        (tmp_path / str(number) / "captions.csv").write_text("\n".join([header, *kept]))
    here = ["--data.source", "pairs:captions.csv"]
    with start((here, "in_folder=0"), (here, "in_folder=1")) as both:
        for command in both:
            assert command.end() == 2, command.text
            assert "differs from process 0 on" in command.text
            assert "training data (" in command.text
    assert not list((tmp_path / "run").glob("checkpoints/[0-9]*"))


def test_hosts_that_do_not_share_the_run_directory_are_told_so(start, tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    local = ["--workdir", "run"]
    faults = (f"in_folder={number},short_patience=2" for number in range(2))
    with start(*((local, fault) for fault in faults)) as both:
        for command in both:
            assert command.end() == 2, command.text
            assert "is not the folder that process 0 sees under this name" in command.text


def test_a_process_that_never_comes_is_named(start):
    with start((["--distributed.timeout-seconds", "1"], None), processes=3) as (command,):
        assert command.end() == RETRY, command.text
        assert "process 1, 2 of 3 did not come within 1 s" in command.text


def test_the_failure_of_one_process_is_told_by_all(start, tmp_path):
    with start(([], None), ([], "fail_in_step=3")) as (first, second):
        assert second.end() == 2, second.text
        failed = time.monotonic()
        assert first.end() == 2, first.text
        assert time.monotonic() - failed < 90  # JAX's own way takes 300 s
        assert "the disk of this machine is upside down" in second.text
        assert "process 1 failed" in first.text and "upside down" in first.text
    logs = tmp_path / "run" / "logs"
    assert "upside down" in (logs / "process-00.log").read_text()
    assert "Traceback" in (logs / "process-01.log").read_text()


@pytest.mark.parametrize("at_fault", [0, 1])
def test_an_evaluation_that_fails_in_one_process_ends_no_training(start, tmp_path, pairs, at_fault):
    evaluates = ["--data.eval-source", f"pairs:{pairs}", "--evaluation.every-steps", "3"]
    evaluates.append("--logging.report")  # whose matrices are measured too, at the first step
    faults = ["fail_to_read_test_data=0" if index == at_fault else None for index in range(2)]
    with start(*((evaluates, fault) for fault in faults)) as both:
        for command in both:
            assert command.end() == 1, command.text
            assert "The evaluation of step 3 failed; the training continues" in command.text
            assert "the evaluation of step 0, 3, 6 failed" in command.text
            assert "stale file handle" in command.text
    assert (tmp_path / "run" / "checkpoints" / "6" / "MANIFEST.json").exists()


@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("when", ["kill_in_step=3", "kill_while_preparing=0"])
def test_the_survivor_of_a_killed_process_asks_to_be_started_again(start, killed, when):
    faults = [when if index == killed else None for index in range(2)]
    with start(*(([], fault) for fault in faults)) as both:
        assert both[killed].end() == -signal.SIGKILL
        began = time.monotonic()
        assert both[1 - killed].end() == RETRY, both[1 - killed].text
        assert time.monotonic() - began < 60  # JAX's own way takes 100 s, a barrier 300 s
        assert "another process is gone" in both[1 - killed].text

"""launch/local.sh: real runs of several processes, and what it does when one of them ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def train(tmp_path_factory, program_cache, write_pairs):
    """`train(processes, *arguments)` trains a tiny model, and gives its run directory."""
    place = tmp_path_factory.mktemp("local")
    write_pairs(place, 16)
    environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    environment |= {
        "CLIP_JAX": str(Path(sysconfig.get_path("scripts")) / "clip-jax"),
        "JAX_COMPILATION_CACHE_DIR": str(program_cache),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # as in tests/conftest.py, and one device a process
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
    }

    def run(processes: int, *arguments: str) -> Path:
        workdir = place / f"run{len(list(place.glob('run*')))}"
        command = [
            *("bash", str(LAUNCH / "local.sh"), "--processes", str(processes), "--"),
            *("train", "--workdir", str(workdir), "--steps", "4"),
            *("--model.name", "ViT-test", "--model.dtype", "float32"),
            *("--data.source", f"pairs:{place}/captions.csv", "--data.batch-size", "8"),
            *("--data.threads", "1", "--evaluation.batch-size", "8"),
            *("--optimizer.warmup-steps", "2", "--optimizer.learning-rate", "1e-3"),
            *("--logging.every-steps", "1", "--logging.loggers", "jsonl", "--logging.no-report"),
            *("--logging.no-progress", *arguments),
        ]
        found = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300
        )
        assert found.returncode == 0, found.stdout + found.stderr
        return workdir

    return run


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["loss"] for line in lines]
    assert len(found) == 4
    return found


@pytest.fixture(scope="module")
def alone(train) -> Path:
    """A run of one process."""
    workdir = train(1)
    assert not (workdir / "logs").exists()  # what one process says is on the console
    return workdir


def test_several_processes_train_the_same_as_one(train, alone):
    processes = 4
    workdir = train(processes)
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=2e-5)
    logs = sorted(path.name for path in (workdir / "logs").iterdir())
    assert logs == [f"process-{number:02}.log" for number in range(processes)]
    # Only process 0 writes what they share; the others' files have their number.
    files = sorted(path.name for path in workdir.glob("bad_samples*"))
    assert files == [
        *(f"bad_samples.{number}.json" for number in range(1, processes)),
        "bad_samples.json",
    ]


def test_several_processes_start_from_the_same_weights_as_one(train, alone):
    start = ("--model.init-from", str(alone), "--mesh.fsdp", "2")
    one = losses(train(1, *start[:2]))
    np.testing.assert_allclose(losses(train(2, *start)), one, rtol=2e-5)


# --------------------------------------------------------------- with a program that only ends

PROGRAM = """#!/usr/bin/env bash
echo "$*" >>"$PLACE/starts"
index=0
while (($#)); do [[ $1 == --distributed.process-index ]] && index=$2; shift; done
trap 'echo "TERM $index" >>"$PLACE/signals"; exit 75' TERM
trap 'echo "INT $index" >>"$PLACE/signals"; exit 130' INT
[[ -e $PLACE/codes.$index ]] || exit 0
read -r code <"$PLACE/codes.$index"
sed -i 1d "$PLACE/codes.$index"
echo "$index $$" >>"$PLACE/pids"
case $code in
  wait) while :; do sleep 0.05; done ;;
  killed) kill -KILL $$ ;;
  '') exit 0 ;;
  *) exit "$code" ;;
esac
"""


@pytest.fixture
def program(place):
    """`program(codes of process 0, of process 1, ...)`: how it ends at each start."""

    def install(*codes: str):
        (place.bin / "clip-jax").write_text(PROGRAM)
        (place.bin / "clip-jax").chmod(0o755)
        for index, text in enumerate(codes):
            (place.folder / f"codes.{index}").write_text("\n".join(text.split()) + "\n")
        return {"PLACE": str(place.folder)}

    return install


def starts(place) -> list[str]:
    return (place.folder / "starts").read_text().splitlines()


@pytest.mark.parametrize("code", ["75", "killed"])
def test_what_was_preempted_or_killed_is_started_again(code, place, program):
    found = place.launch("local.sh", "--", "train", "--x", **program(f"{code} 0"))
    assert found.returncode == 0, found.stderr
    assert starts(place) == ["train --x"] * 2
    assert "start 1 of 10 after the first" in found.stderr


def test_a_process_that_waits_for_one_that_died_is_asked_to_leave(place, program):
    """As one does that was there first, when another is killed before it came."""
    script = place.folder / "local.sh"
    script.write_text((LAUNCH / "local.sh").read_text().replace("ASK_S=15", "ASK_S=0"))
    found = place.launch(
        *(str(script), "--processes", "2", "--", "train"), **program("wait 0", "killed 0")
    )
    assert found.returncode == 0, found.stderr
    assert (place.folder / "signals").read_text() == "TERM 0\n"
    assert len(starts(place)) == 4


@pytest.mark.parametrize("code", [1, 2, 130])
def test_what_a_person_has_to_see_is_passed_on(code, place, program):
    found = place.launch("local.sh", "--", "train", **program(str(code)))
    assert found.returncode == code
    assert len(starts(place)) == 1


def test_starting_again_has_an_end(place, program):
    found = place.launch("local.sh", "--restarts", "1", "--", "train", **program("75 75 75"))
    assert found.returncode == 75
    assert len(starts(place)) == 2
    assert "the last of 1 restarts is used" in found.stderr


def test_all_processes_start_again_together_at_another_port(place, program):
    variables = program("75 0", "75 0")
    found = place.launch("local.sh", "--processes", "2", "--", "train", **variables)
    assert found.returncode == 0, found.stderr
    lines = starts(place)
    assert len(lines) == 4
    ports = [line.split("--distributed.coordinator ")[1].split()[0] for line in lines]
    assert ports[0] == ports[1] != ports[2] == ports[3]
    assert sorted(line[-1] for line in lines) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_all_processes_and_ends_the_script(number, code, place, program):
    variables = program("wait", "wait")
    # A shell cannot trap what its parent ignores, as that of `make test &` ignores Ctrl-C.
    hearing = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", hearing, "bash", str(LAUNCH / "local.sh")]
    command += ["--processes", "2", "--", "train"]
    bystander = subprocess.Popen(["sleep", "600"])
    environment = place.environment | variables
    script = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_for(lambda: len(lines_of(place.folder / "pids")) == 2)
        script.send_signal(number)
        assert script.wait(30) == code
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert sorted(lines_of(place.folder / "signals")) == [
        f"{number.name[3:]} 0",
        f"{number.name[3:]} 1",
    ]
    assert len(starts(place)) == 2  # it was asked to leave, and started nothing again
    assert bystander.poll() is None  # nothing else was touched
    bystander.kill()
    bystander.wait()


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(done, timeout_s: float = 30):
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_process_gets_a_gpu_of_its_own(place):
    found = place.launch("local.sh", "--gpus", "2", "--port", "1234", "--dry-run", "--", "train")
    meeting = "--distributed.coordinator 127.0.0.1:1234 --distributed.processes 2"
    assert found.stdout.splitlines() == [
        f"env CUDA_VISIBLE_DEVICES={n} clip-jax train {meeting} --distributed.process-index {n} &"
        for n in range(2)
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--processes", "0", "--", "train"], "--processes=0 must be at least 1"),
        (["--processes", "two", "--", "train"], "--processes=two must be a whole number"),
        (["--restarts"], "--restarts needs a value"),
        (["train"], "unknown option train"),
        ([], "nothing to run"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, expected, place):
    found = place.launch("local.sh", *arguments)
    assert found.returncode == 2
    assert expected in found.stderr and len(found.stderr.splitlines()) == 1

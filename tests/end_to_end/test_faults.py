"""Faults put into the real command: what is lost, what is said, and that the end is bit-identical."""

import contextlib
import json
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from command import Command, save_for_ever

pytestmark = pytest.mark.usefixtures("programs")
RETRY = 75
STEPS, SAVE_EVERY = 8, 2
TIMES = {
    *("images_per_second", "images_per_second_per_chip", "data_wait_share"),
    *("tflops_per_second_per_chip", "mfu", "peak_memory_gib"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_pairs) -> Path:
    """A folder with 48 images and their captions."""
    return write_pairs(tmp_path_factory.mktemp("faults"), 48).parent


def arguments(place: Path, run: Path, *more: str) -> list[str]:
    return [
        "train",
        *("--workdir", str(run)),
        *("--steps", str(STEPS)),
        *("--model.name", "ViT-test"),
        *("--model.dtype", "float32"),
        *("--data.source", f"pairs:{place}/captions.csv"),
        *("--data.batch-size", "8"),
        *("--data.threads", "1"),
        *("--optimizer.warmup-steps", "2"),
        *("--checkpoint.every-steps", str(SAVE_EVERY)),
        *("--evaluation.batch-size", "8"),
        *("--logging.every-steps", "1"),
        "--logging.loggers",
        "jsonl",
        "--logging.no-report",
        *more,
    ]


def start(place: Path, run: Path, *more: str, **kwargs) -> Command:
    number = len(list(run.parent.glob(f"{run.name}.*.txt")))
    return Command(
        *arguments(place, run, *more), output=run.parent / f"{run.name}.{number}.txt", **kwargs
    )


def finish(place: Path, run: Path, *more: str, **kwargs) -> str:
    """Start the command (again) and let it come to its end."""
    with start(place, run, *more, **kwargs) as command:
        assert command.end() == 0, command.text
        return command.text


@contextlib.contextmanager
def start_pair(place: Path, run: Path, **kwargs):
    """The command in two processes, of one device each, that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    more = ("--distributed.coordinator", address, "--distributed.processes", "2")
    with (
        start(place, run, *more, "--distributed.process-index", "0", **kwargs) as first,
        start(place, run, *more, "--distributed.process-index", "1", **kwargs) as second,
    ):
        yield first, second


def ask_to_leave(run: Path, command: Command, number: int = signal.SIGTERM):
    """Send a signal to a command that is held in a step, and let it go."""
    command.signal(number)
    (run / "go").touch()


def refused(place: Path, run: Path, *more: str, output: Path | None = None) -> str:
    """Start a command that must end with one clear line and exit code 2."""
    output = (output or run.parent) / "refused.txt"
    with Command(*arguments(place, run, *more), output=output) as command:
        assert command.end() == 2, command.text
        assert "Traceback" not in command.text
        return command.text


def wait_for(done, timeout_s: float = 240):
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def largest_file(step: Path) -> Path:
    files = (path for path in (step / "state").rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def steps_in(run: Path, folder: str = "checkpoints") -> list[int]:
    return sorted(int(p.name) for p in (run / folder).iterdir() if p.name.isdigit())


def state(run: Path, step: int = STEPS) -> dict:
    path = (run / "checkpoints" / str(step) / "state").resolve()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        # As NumPy's arrays, whatever the devices were that saved them.
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=how))


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, without what a clock has measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same_end(run: Path, reference: Path, *, compare_metrics: bool = True):
    """Parameters, moments, counters and metrics have the same bits."""
    ours, theirs = state(run), state(reference)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, one), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs)):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), path
    assert not compare_metrics or metrics(run) == metrics(reference)


@pytest.fixture(scope="module")
def reference(place) -> Path:
    """An uninterrupted run."""
    run = place / "reference"
    finish(place, run)
    assert steps_in(run) == [STEPS - SAVE_EVERY, STEPS]
    assert sorted({line["step"] for line in metrics(run)}) == list(range(1, STEPS + 1))
    return run


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module")
def half(place, reference) -> Path:
    """A run that was taken away after step 5, with checkpoints of steps 4 and 5."""
    run = place / "half"
    with start(place, run, fault="hold_in_step=5") as command:
        command.wait_for("holding")
        ask_to_leave(run, command)
        assert command.end() == RETRY
    assert steps_in(run) == [4, 5]
    return run


@pytest.fixture
def cut(half, run) -> Path:
    """A copy of it."""
    shutil.copytree(half, run)
    return run


# ------------------------------------------------------------------------------------ killed


def test_killed_in_a_step(place, reference, run):
    with start(place, run, fault="kill_in_step=6") as command:
        assert command.end() == -signal.SIGKILL
    assert max(steps_in(run)) <= 4
    assert "Resuming from step " in finish(place, run)
    assert_same_end(run, reference)


@pytest.mark.parametrize("milliseconds", [0, 12])
def test_killed_in_an_asynchronous_save(place, reference, run, milliseconds):
    with start(place, run, fault=f"kill_in_save={milliseconds}") as command:
        assert command.end() == -signal.SIGKILL
    finish(place, run)
    assert not list((run / "checkpoints").glob("*tmp*"))
    assert_same_end(run, reference)


def test_killed_between_a_checkpoint_and_the_next_batch(place, reference, run):
    with start(place, run, fault="kill_between_save_and_data=4") as command:
        assert command.end() == -signal.SIGKILL
    assert max(steps_in(run)) == 4
    assert "Resuming from step 4" in finish(place, run)
    assert_same_end(run, reference)


def test_killed_at_random_moments_of_saving(tmp_path):
    from clip_jax.config import CheckpointConfig
    from clip_jax.runs.checkpoints import Checkpoints

    rng, newest = np.random.default_rng(0), 0
    for _ in range(8):
        process = save_for_ever(str(tmp_path))
        wait_for(lambda known=newest: known < max(steps_in(tmp_path, "."), default=0))
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
            step = max(checkpoints.steps())
            like = {
                "a": jax.ShapeDtypeStruct((300_000,), "float32"),
                "b": jax.ShapeDtypeStruct((7, 9), "int32"),
            }
            restored = checkpoints.restore(like)
        assert restored.step == step > newest  # nothing that was committed is damaged
        assert (restored.state["a"] == step).all() and (restored.state["b"] == step).all()
        newest = step
    assert not (tmp_path / "damaged").exists()


# ----------------------------------------------------------------------------- asked to leave


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, RETRY), (signal.SIGINT, 130)])
def test_asked_to_leave_in_a_step(place, reference, run, number, code):
    with start(place, run, fault="hold_in_step=3") as command:
        command.wait_for("holding")
        ask_to_leave(run, command, number)
        assert command.end() == code
        why = "Preempted (SIGTERM)" if number == signal.SIGTERM else "Interrupted (SIGINT)"
        assert f"{why}: saving a checkpoint at step 3" in command.text
    assert max(steps_in(run)) == 3
    assert "Resuming from step 3" in finish(place, run)
    assert_same_end(run, reference)


def test_asked_to_leave_while_compiling(place, reference, run):
    with start(place, run, fault="hold_compiling=0") as command:
        command.wait_for("holding")
        ask_to_leave(run, command)
        assert command.end() == RETRY
    assert steps_in(run) == [1]
    finish(place, run)
    assert_same_end(run, reference)


@pytest.mark.parametrize("at", [4, STEPS])
def test_asked_to_leave_in_an_evaluation(place, run, at):
    """Also in the last one, which the next start then makes up for."""
    more = ("--data.eval-source", f"pairs:{place}/captions.csv", "--evaluation.every-steps", "4")
    undisturbed = place / "evaluated"
    if not undisturbed.exists():
        finish(place, undisturbed, *more)
    with start(place, run, *more, fault=f"slow_evaluation={at}") as command:
        command.wait_for("evaluating")
        command.signal(signal.SIGTERM)
        assert command.end() == RETRY
        assert f"Preempted (SIGTERM): saving a checkpoint at step {at}" in command.text
    assert not any("eval/loss" in line for line in metrics(run) if line["step"] == at)
    finish(place, run, *more)
    assert sum("eval/loss" in line for line in metrics(run)) == 2
    assert_same_end(run, undisturbed)


@pytest.mark.parametrize("at", [4, STEPS])
def test_an_evaluation_fails(place, reference, run, at):
    """The training continues and its end is saved; the run says at its end that a result is missing."""
    more = ("--data.eval-source", f"pairs:{place}/captions.csv", "--evaluation.every-steps", "4")
    with start(place, run, *more, fault=f"fail_in_evaluation={at}") as command:
        assert command.end() == 1
        assert f"The evaluation of step {at} failed; the training continues" in command.text
        assert f"clip-jax: the evaluation of step {at} failed: 30 of 48 samples" in command.text
    assert_same_end(run, reference, compare_metrics=False)
    assert sum("eval/loss" in line for line in metrics(run)) == 1
    finish(place, run, *more)
    assert sum("eval/loss" in line for line in metrics(run)) == 1 + (at == STEPS)


def test_one_of_two_processes_is_asked_to_leave(place, run):
    undisturbed = place / "pair"
    if not undisturbed.exists():
        with start_pair(place, undisturbed) as (first, second):
            assert (first.end(), second.end()) == (0, 0), first.text + second.text
    with start_pair(place, run, fault="hold_in_step=3") as (first, second):
        first.wait_for("holding")
        second.wait_for("holding")
        ask_to_leave(run, second)
        assert (first.end(), second.end()) == (RETRY, RETRY), first.text + second.text
        left = [
            re.search(r"saving a checkpoint at step (\d+)", command.text)[1]
            for command in (first, second)
        ]
    assert left[0] == left[1] == str(max(steps_in(run)))
    with start_pair(place, run) as (first, second):
        assert (first.end(), second.end()) == (0, 0), first.text + second.text
        assert f"Resuming from step {left[0]}" in first.text
    assert_same_end(run, undisturbed)


# ----------------------------------------------------------------------------------- storage


def test_the_newest_checkpoint_is_truncated(place, reference, cut):
    path = largest_file(cut / "checkpoints" / "5")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    text = finish(place, cut)
    assert re.search(
        r"CHECKPOINT OF STEP 5 IS DAMAGED: state/\S+ has \d+ bytes where \d+ were", text
    )
    assert "Resuming from step 4" in text
    assert_same_end(cut, reference)


def test_a_byte_of_the_newest_checkpoint_is_flipped(place, reference, cut):
    path = largest_file(cut / "checkpoints" / "5")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x40
    path.write_bytes(content)
    text = finish(place, cut)
    assert re.search(r"CHECKPOINT OF STEP 5 IS DAMAGED: state/\S+ has other bytes than were", text)
    assert (cut / "checkpoints" / "damaged" / "5").is_dir()
    assert_same_end(cut, reference)


def test_all_checkpoints_are_damaged(place, cut):
    for step in (4, 5):
        largest_file(cut / "checkpoints" / str(step)).unlink()
    text = refused(place, cut)
    assert "is intact (step 5: state/" in text and "--workdir" in text
    assert steps_in(cut) == [4, 5] and len(metrics(cut)) == 5


def test_the_disk_is_full_for_a_while(place, reference, run):
    with start(place, run, fault="hold_in_step=1") as command:
        command.wait_for("holding")
        command.limit_files(20_000)  # metrics.jsonl fits, no state does
        (run / "go").touch()
        command.wait_for("SAVING FAILED (1 in a row), step 2")
        command.wait_until(lambda: len(metrics(run)) == STEPS)  # training went on
        command.limit_files(-1)
        assert command.end() == 0, command.text
        assert "Checkpoints can be written again: step " in command.text
    assert not list((run / "checkpoints").glob("*tmp*"))
    assert_same_end(run, reference)


def test_the_disk_stays_full(place, reference, run):
    with start(place, run, "--checkpoint.retry-seconds", "4", fault="hold_in_step=3") as command:
        command.wait_for("holding")
        command.wait_until(lambda: steps_in(run) == [2])
        command.limit_files(20_000)
        (run / "go").touch()
        assert command.end() == 1
        assert "No checkpoint could be written" in command.text
        assert "it resumes from step 2" in command.text
        assert "Traceback" not in command.text
    assert steps_in(run) == [2]
    finish(place, run)
    assert_same_end(run, reference)


def test_the_directory_cannot_be_written(place):
    text = refused(place, Path("/sys/run"), output=place)
    assert "workdir=/sys/run cannot be written" in text and "--workdir" in text


def test_a_source_is_deleted(place, reference, cut):
    moved = (place / "captions.csv").rename(place / "elsewhere.csv")
    try:
        assert "captions.csv" in refused(place, cut)
    finally:
        moved.rename(place / "captions.csv")
    assert steps_in(cut) == [4, 5]
    finish(place, cut)
    assert_same_end(cut, reference)


def test_two_runs_in_one_directory(place, reference, run):
    with start(place, run, fault="hold_in_step=3") as command:
        command.wait_for("holding")
        assert f"is in use by process {command.pid} on" in refused(place, run)
        (run / "go").touch()
        assert command.end() == 0, command.text
    assert_same_end(run, reference)


# ------------------------------------------------------------------------- data and numbers


def test_a_data_worker_is_killed(place, reference, run):
    with start(place, run, "--data.workers", "1", fault="hold_in_step=4") as command:
        command.wait_for("holding")
        workers = [
            child
            for child in psutil.Process(command.pid).children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        ]
        assert workers
        for worker in workers:
            worker.kill()
        (run / "go").touch()
        assert command.end() == 0, command.text
    assert_same_end(run, reference)


def test_a_batch_is_not_finite(place, reference, run):
    """Its step is skipped, and a kill later on changes nothing of that."""
    undisturbed = run.with_name("undisturbed")
    text = finish(place, undisturbed, fault="nan_in_batch=4")
    assert "Skipped step 4: loss nan" in text
    before, after = metrics(reference)[2], metrics(undisturbed)
    assert after[2] == before
    assert [line["skipped_steps"] for line in after] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert np.isfinite([line["loss"] for line in after[4:]]).all()
    with start(place, run, fault="nan_in_batch=4,kill_in_step=6") as command:
        assert command.end() == -signal.SIGKILL
    finish(place, run, fault="nan_in_batch=4")
    assert_same_end(run, undisturbed, compare_metrics=False)  # a NaN is not equal to itself


def test_nothing_is_finite_any_more(place, reference, run):
    with start(place, run, "--health.max-skipped-in-row", "3", fault="nan_from=4") as command:
        assert command.end() == 1
        assert "3 steps in a row, the last being step 6" in command.text
    kept = state(run, max(steps_in(run)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept["params"]))
    assert kept["health"]["skipped"] <= 3


def test_the_device_count_changes(place, reference, run):
    """Eight, two, four devices: the same curve, within rounding."""
    more = ("--mesh.fsdp", "2")
    for devices, at in ((8, 3), (2, 5)):
        with start(place, run, *more, devices=devices, fault=f"hold_in_step={at}") as command:
            command.wait_for("holding")
            ask_to_leave(run, command)
            assert command.end() == RETRY, command.text
        (run / "go").unlink()
    finish(place, run, *more, devices=4)
    for ours, theirs in zip(metrics(run), metrics(reference)):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    ours, theirs = state(run)["params"], state(reference)["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), ours, theirs)


def test_the_clock_is_set_back(place, reference, run):
    by_minutes = ("--checkpoint.every-steps", "None", "--checkpoint.every-minutes", "0.00001")
    with start(place, run, *by_minutes, fault="set_clock_back=3") as command:
        assert command.end() == 0, command.text
        assert "the clock was set back" in command.text
    assert steps_in(run)[-1] == STEPS and len(steps_in(run)) == 2
    goodput = json.loads((run / "goodput.json").read_text())
    assert all(0 <= seconds < 600 for seconds in goodput["seconds"].values())
    assert_same_end(run, reference)


def test_a_step_hangs(place, reference, run):
    with start(place, run, "--health.hang-seconds", "3", fault="hang_in_step=5") as command:
        assert command.end() == RETRY
        assert "gave no sign of life for 3 s while in step 5" in command.text
        assert "in wait_for_other_hosts" in command.text
    assert "in wait_for_other_hosts" in (run / "stacks.txt").read_text()
    finish(place, run)
    assert_same_end(run, reference)


# ---------------------------------------------------------------------------------- settings


def test_a_changed_setting_is_refused_until_it_is_allowed(place, cut):
    text = refused(place, cut, "--data.batch-size", "16", "--steps", "12")
    assert "data.batch_size: 8 -> 16; steps: 8 -> 12" in text
    assert "--checkpoint.allow-change data.batch_size steps" in text
    assert json.loads((cut / "config.json").read_text())["steps"] == STEPS
    more = ("--steps", "12", "--checkpoint.allow-change", "steps")
    text = finish(place, cut, *more)
    assert "Resuming with another setting: steps: 8 -> 12" in text
    assert steps_in(cut)[-1] == 12
    # 96 samples were taken, and the next steps take 16 each.
    more = ("--steps", "14", "--data.batch-size", "16", "--checkpoint.allow-change", "steps")
    text = finish(place, cut, *more, "data.batch_size")
    assert "Resuming with batches of 16 samples instead of 8: 96 samples were taken" in text
    seen = [line["samples_seen"] for line in metrics(cut) if "samples_seen" in line]
    assert seen[-3:] == [96, 112, 128]

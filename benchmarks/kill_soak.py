"""Kill a tiny run with SIGKILL again and again; its end must be that of an uninterrupted run.

    python benchmarks/kill_soak.py --kills 200
    python benchmarks/kill_soak.py --kills 200 --minutes 25       as many of them as fit
    python benchmarks/kill_soak.py --kills 200 --minutes 10 --folder SOAK     goes on where the
        last call with this folder stopped, and compares once there were as many kills

Each start of `clip-jax train` is killed at a random moment: while it starts, compiles, waits for
data, steps, saves or evaluates. It evaluates, keeps an average of its weights (EMA), reads with two
data workers, and logs to metrics.jsonl and TensorBoard. How far it comes between two kills is drawn
anew each time, so that some starts save several checkpoints and others none. The script prints one
line of JSON and fails if a parameter, a moment, an average or a counter differs in one bit, a line
of metrics.jsonl or a point of TensorBoard differs, is missing or is there twice, shared memory or
a temporary folder is left, a process outlives the run, or the account of the run's time differs from the
wall clock by more than 1 %.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

TESTS = Path(__file__).resolve().parents[1] / "tests" / "end_to_end"
sys.path.insert(0, str(TESTS))

SAVE_EVERY = 2
EVALUATE_EVERY = 10
TIMES = {
    *("images_per_second", "images_per_second_per_chip", "data_wait_share"),
    *("tflops_per_second_per_chip", "mfu", "peak_memory_gib"),
}


def write_pairs(folder: Path):
    """48 images and their captions."""
    rng = np.random.default_rng(0)
    lines = ["image,caption"]
    for number in range(48):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,thing number {number} of {number % 5}")
    (folder / "captions.csv").write_text("\n".join(lines))


def arguments(folder: Path, run: Path, steps: int) -> list[str]:
    settings = {
        "workdir": run,
        "steps": steps,
        "model.name": "ViT-test",
        "model.dtype": "float32",
        "data.source": f"pairs:{folder}/captions.csv",
        "data.batch-size": 8,
        "data.threads": 1,
        "data.workers": 2,
        "data.eval-source": f"pairs:{folder}/captions.csv",
        "optimizer.warmup-steps": 2,
        "optimizer.schedule": "constant",  # the run may end earlier than was planned
        "optimizer.ema-decay": 0.9,
        "checkpoint.every-steps": SAVE_EVERY,
        "checkpoint.keep-best-by": "eval/loss",
        "evaluation.batch-size": 16,
        "evaluation.every-steps": EVALUATE_EVERY,
        "logging.every-steps": 1,
    }
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return ["train", *flags, "--logging.loggers", "jsonl", "tensorboard", "--logging.no-report"]


def newest_step(run: Path) -> int:
    folder = run / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def arrays(run: Path, step: int) -> dict[str, bytes]:
    """The bytes of every array of a checkpoint, by name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((run / "checkpoints" / str(step) / "state").resolve())
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def metrics(run: Path) -> list[dict]:
    """What was logged, without what a clock has measured."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def points(run: Path) -> list[tuple[int, str, float]]:
    """TensorBoard's points as it shows them: a later file takes back what it says again."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(run.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            if at + 12 + length + 4 > len(data):
                break  # a kill has cut the last one off
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4
            if event.HasField("session_log"):
                found = [one for one in found if one[0] < event.step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.append((event.step, value.tag, value.simple_value))
    return [one for one in found if one[1].removeprefix("train/") not in TIMES]


def leftovers(folder: Path) -> list[str]:
    """What a kill may leave on the machine."""
    shared = Path("/dev/shm")
    found = set(shared.iterdir()) if shared.exists() else set()
    found |= {*(folder / "tmp").iterdir(), *folder.rglob("*.orbax-checkpoint-tmp*")}
    found |= set(folder.rglob(".*.partial"))
    # What multiprocessing keeps for the server that starts the commands goes with that server.
    of_server = ("pymp-", "sem.mp-")
    return sorted(str(path) for path in found if not path.name.startswith(of_server))


def soak(folder: Path, kills: int, steps: int, minutes: float, *, compare: bool) -> dict | None:
    """Kill a run `kills` times, let it end, and compare it with one that nothing happened to.

    Without `compare` the result is None where the minutes were over before the kills were done.
    """
    from command import Command

    write_pairs(folder)
    before = leftovers(folder)
    reference, run, notes = folder / "reference", folder / "run", folder / "soak.json"
    for _ in range(2):  # the second one finds its programs compiled, as all later ones do
        start, warm = time.monotonic(), folder / f"warm{_}"
        shutil.rmtree(warm, ignore_errors=True)
        with Command(*arguments(folder, warm, 2), output=folder / "warm") as command:
            assert command.end(timeout_s=3600) == 0, command.text
    start_s = time.monotonic() - start

    known = json.loads(notes.read_text()) if notes.exists() else {"reached": [], "seconds": 0.0}
    reached, began = known["reached"], time.monotonic()
    while len(reached) < kills and time.monotonic() - began < 60 * minutes:
        rng = np.random.default_rng(len(reached))
        with Command(*arguments(folder, run, steps), output=folder / "run.txt") as command:
            newest = newest_step(run)
            if rng.random() < 0.3:  # somewhere in the start
                deadline = time.monotonic() + rng.uniform(0, start_s)
            else:  # at a moment after some saves
                goal = newest + SAVE_EVERY * int(rng.integers(1, 4))
                give_up = time.monotonic() + 1800
                while newest_step(run) < min(goal, steps - SAVE_EVERY):
                    assert time.monotonic() < give_up and command.is_alive, command.text
                    time.sleep(0.001)
                deadline = time.monotonic() + rng.uniform(0, 0.3)
            while time.monotonic() < deadline:
                time.sleep(0.0005)
            assert command.is_alive, f"it ended by itself: {command.text}"
        reached.append(newest_step(run))
        seconds = known["seconds"] + time.monotonic() - began
        notes.write_text(json.dumps({"reached": reached, "seconds": seconds}))
        if newest_step(run) >= steps - SAVE_EVERY:
            raise SystemExit(f"the run was over after {len(reached)} kills: give it more --steps")
        print(f"{len(reached)} kills, at step {reached[-1]}", file=sys.stderr, flush=True)
    if len(reached) < kills and not compare:
        return None
    # A run whose end comes sooner than was planned: the schedule is constant, so nothing else changes.
    last = -(-(newest_step(run) + 1) // EVALUATE_EVERY) * EVALUATE_EVERY
    shorter = ["--checkpoint.allow-change", "steps"]
    with Command(*arguments(folder, run, last), *shorter, output=folder / "run.txt") as command:
        assert command.end(timeout_s=3600) == 0, command.text
    wall_s = known["seconds"] + time.monotonic() - began
    with Command(*arguments(folder, reference, last), output=folder / "reference.txt") as command:
        assert command.end(timeout_s=3600) == 0, command.text

    ours, theirs = arrays(run, last), arrays(reference, last)
    differing = [name for name in theirs if ours.get(name) != theirs[name]]
    record = json.loads((run / "goodput.json").read_text())
    damaged = run / "checkpoints" / "damaged"
    shown, expected = sorted(points(run)), sorted(points(reference))
    return {
        "kills": len(reached),
        "steps": last,
        "starts_that_saved": int(np.count_nonzero(np.diff([0, *reached]))),
        "arrays": len(theirs),
        "arrays_that_differ": differing,
        "logged_lines": len(metrics(reference)),
        "logged_lines_equal": metrics(run) == metrics(reference),
        "tensorboard_points": len(expected),
        "tensorboard_equal": shown == expected,
        "left_over": [name for name in leftovers(folder) if name not in before],
        "damaged_checkpoints": len(list(damaged.glob("[0-9]*"))) if damaged.exists() else 0,
        "minutes": round(wall_s / 60, 1),
        "goodput_of_wall_time": round(sum(record["seconds"].values()) / wall_s, 4),
        "starts": record["starts"],
        "seconds_by_phase": record["seconds"],
    }


def is_sound(found: dict) -> bool:
    """Whether the killed run is the same as the other one in all that it leaves."""
    return (
        not found["arrays_that_differ"]
        and found["logged_lines_equal"]
        and found["tensorboard_equal"]
        and not found["left_over"]
        and abs(found["goodput_of_wall_time"] - 1) < 0.01
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--steps", type=int, help="of the run at most; by default enough for the kills"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="no kill comes later than this")
    parser.add_argument("--folder", type=Path, help="where a soak of several calls is kept")
    parser.add_argument(
        "--last", action="store_true", help="compare, however many kills there were"
    )
    args = parser.parse_args()
    steps = args.steps or 8 * args.kills
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = (args.folder or Path(name)).resolve()
        os.environ.setdefault("CLIP_JAX_TEST_CACHE", f"{folder}/programs")
        os.environ["TMPDIR"] = f"{folder}/tmp"
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        found = soak(folder, args.kills, steps, args.minutes, compare=args.last or not args.folder)
    if found is None:
        print("not all kills yet: call it again", file=sys.stderr)
        return 0
    print(json.dumps(found))
    return 0 if is_sound(found) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Kill a tiny run with SIGKILL again and again; at its end it must be bit-identical to an uninterrupted run.

    python benchmarks/kill_soak.py --kills 200

Each start of `clip-jax train` is killed at a random moment: while it starts, compiles, waits for
data, steps, or saves. How far it comes between two kills is drawn again each time, so that some
starts save several checkpoints and others none. The script prints one line of JSON and fails if a
parameter, a moment, a counter or a logged number differs in one bit.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

TESTS = Path(__file__).resolve().parents[1] / "tests" / "end_to_end"
sys.path.insert(0, str(TESTS))

SAVE_EVERY = 2
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
        "optimizer.warmup-steps": 2,
        "checkpoint.every-steps": SAVE_EVERY,
        "evaluation.batch-size": 8,
        "logging.every-steps": 1,
    }
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return ["train", *flags, "--logging.loggers", "jsonl", "--logging.no-report"]


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


def soak(folder: Path, kills: int, steps: int) -> dict:
    """Kill a run `kills` times, let it end, and compare it with an uninterrupted one."""
    from command import Command

    write_pairs(folder)
    peace, run = folder / "peace", folder / "run"
    for _ in range(2):  # the second one finds its programs compiled, as all later ones do
        start = time.monotonic()
        with Command(*arguments(folder, folder / f"warm{_}", 2), output=folder / "warm") as command:
            assert command.end() == 0, command.text
    start_s = time.monotonic() - start
    with Command(*arguments(folder, peace, steps), output=folder / "peace.txt") as command:
        assert command.end(timeout_s=3600) == 0, command.text

    rng, began, killed, reached = np.random.default_rng(0), time.monotonic(), 0, []
    while killed < kills:
        with Command(*arguments(folder, run, steps), output=folder / "run.txt") as command:
            before = newest_step(run)
            if rng.random() < 0.2:  # somewhere in the start
                deadline = time.monotonic() + rng.uniform(0, start_s)
            else:  # at a moment after some saves
                goal = before + SAVE_EVERY * int(rng.integers(1, 4))
                give_up = time.monotonic() + 600
                while newest_step(run) < min(goal, steps - SAVE_EVERY):
                    assert time.monotonic() < give_up and command.is_alive, command.text
                    time.sleep(0.001)
                deadline = time.monotonic() + rng.uniform(0, 0.08)
            while time.monotonic() < deadline:
                time.sleep(0.0005)
            assert command.is_alive, f"it ended by itself: {command.text}"
        killed += 1
        reached.append(newest_step(run))
        if newest_step(run) >= steps - SAVE_EVERY:
            raise SystemExit(f"the run was over after {killed} kills: give it more --steps")
        print(f"{killed} kills, at step {reached[-1]}", file=sys.stderr, flush=True)
    with Command(*arguments(folder, run, steps), output=folder / "run.txt") as command:
        assert command.end(timeout_s=3600) == 0, command.text

    ours, theirs = arrays(run, steps), arrays(peace, steps)
    differing = [name for name in theirs if ours.get(name) != theirs[name]]
    record = json.loads((run / "goodput.json").read_text())
    damaged = run / "checkpoints" / "damaged"
    return {
        "kills": killed,
        "steps": steps,
        "starts_that_saved": int(np.count_nonzero(np.diff([0, *reached]))),
        "arrays": len(theirs),
        "arrays_that_differ": differing,
        "logged_lines_equal": metrics(run) == metrics(peace),
        "damaged_checkpoints": len(list(damaged.glob("[0-9]*"))) if damaged.exists() else 0,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "seconds_by_phase": record["seconds"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, help="of the run; by default enough for the kills")
    args = parser.parse_args()
    steps = args.steps or 8 * args.kills
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as name:
        os.environ.setdefault("CLIP_JAX_TEST_CACHE", f"{name}/programs")
        found = soak(Path(name), args.kills, steps)
    print(json.dumps(found))
    return 0 if not found["arrays_that_differ"] and found["logged_lines_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())

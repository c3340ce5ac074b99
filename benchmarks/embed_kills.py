"""Kill `clip-jax embed` at random moments and compare what it ends with to an uninterrupted one.

    python benchmarks/embed_kills.py --kills 20

A run of the tiny model is trained first. Prints the kills, what was done at each, and whether every file is bit-identical.
"""

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLIP_JAX = [sys.executable, "-m", "clip_jax.cli"]
TRAIN = [
    "--model.name",
    "ViT-test",
    "--model.dtype",
    "float32",
    "--data.batch-size",
    "32",
    "--evaluation.batch-size",
    "32",
    "--tokenizer.vocab-size",
    "300",
    "--optimizer.warmup-steps",
    "2",
    "--steps",
    "4",
    "--logging.no-progress",
    "--data.source",
    "shapes:tiny",
]


def content(folder: Path) -> dict[str, str]:
    """A checksum of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder for the run, kept for another time")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="embed_kills_"))
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "run/checkpoints").exists():
        command = [*CLIP_JAX, "train", "--workdir", "run", *TRAIN]
        subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)
    out = f"killed{args.seed}_{int(time.time())}"
    # 2,048 samples are 64 parts, each of one batch, so that there is much to be killed in.
    embed = ["--batch-size", "32", "--part-size", "32", "--no-progress"]
    command = [*CLIP_JAX, "embed", "run", "shapes:tiny"]
    if not (work / "whole/manifest.json").exists():
        subprocess.run([*command, "whole", *embed], cwd=work, check=True)
    draw, kills = random.Random(args.seed), 0
    while kills < args.kills:
        records, before = work / out / "records", None
        process = subprocess.Popen([*command, out, *embed], cwd=work, stdout=subprocess.DEVNULL)
        # Some while it starts, most a random time after its first new part.
        first = len(list(records.glob("*.json"))) if records.exists() else 0
        early = draw.random() < 0.15
        while process.poll() is None and not early:
            before = len(list(records.glob("*.json"))) if records.exists() else 0
            if before > first:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 2.0 if early else 0.05))
        if process.poll() is not None:
            print(f"it ended before kill {kills + 1}: {process.returncode}")
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        done = len(list(records.glob("*.json"))) if records.exists() else 0
        print(f"kill {kills}: {done} of 64 parts are there", flush=True)
    subprocess.run([*command, out, *embed], cwd=work, check=True)
    same = content(work / out) == content(work / "whole")
    print(f"{kills} kills: {'every file is bit-identical' if same else 'FILES DIFFER'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()

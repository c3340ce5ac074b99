"""Hashes of the batches of many steps, over hosts, workers, kills and caches: all must be equal.

    python benchmarks/order_hashes.py --steps 1000

A mixture of two sources in tar shards, read by the loader of training in the default blocks of some 200 samples (a
sample is padded to 20 kB, and its picture has 8 x 8 pixels, so that reading is real and decoding cheap). A step's
hash is of all its rows: token ids that are the sample's number, and the pixels of the random crop. Of each order, global and
in blocks, a run of one host without workers is compared with: 2, 4 and 8 hosts, each host's rows read by itself; 1 and
3 worker processes; a cache that is filled and one that is full; first batches of starts all over the run; and a
process that is killed with SIGKILL at random moments and resumed at the step after its last, by turns with
workers, with the cache, and with another number of hosts.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.config import AugmentConfig, DataConfig, PreprocessConfig
from clip_jax.data.loader import train_batches
from clip_jax.data.sources.registry import open_source

BATCH, SIZE, PADDING = 16, 8, 16 * 1024
SOURCES = {"first": (14, 500), "second": (7, 430)}  # shards, samples of each
WEIGHTS = (0.6, 0.4)
AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), flip=True)


class Numbers:
    """A tokenizer of captions that end in a number."""

    context_length = 1

    def __call__(self, texts, rng=None, mask="truncate"):
        return np.array([[int(text.split()[1])] for text in texts], np.int32)


def write_shards(folder: Path):
    number, rng = 0, np.random.default_rng(0)
    for name, (shards, samples) in SOURCES.items():
        (folder / name).mkdir(parents=True)
        for shard in range(shards):
            with tarfile.open(folder / name / f"{shard:05d}.tar", "w") as tar:
                for _ in range(samples):
                    picture = io.BytesIO()
                    Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(
                        picture, "PNG"
                    )
                    files = {"png": picture.getvalue(), "txt": f"number {number}".encode(), "pad": bytes(PADDING)}  # fmt: skip
                    for ending, data in files.items():
                        member = tarfile.TarInfo(f"{number:08d}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
                    number += 1


def settings(folder: Path, **changes) -> DataConfig:
    sources = tuple(f"tar:{folder}/{name}/*.tar" for name in SOURCES)
    return DataConfig(
        source=sources, weights=WEIGHTS, batch_size=BATCH, augment=AUGMENT, shuffle_window_mb=64,
        data_dir=str(folder / "cache"), threads=1, **changes,
    )  # fmt: skip


def batches(cfg: DataConfig, start: int, host: int = 0, hosts: int = 1):
    sources = [open_source(spec, "train", cfg) for spec in cfg.source]
    return train_batches(
        sources, Numbers(), cfg, image_size=SIZE, preprocess=PreprocessConfig(), seed=1,
        start_step=start, process_index=host, process_count=hosts,
    )  # fmt: skip


def row_hashes(batch: dict) -> list[bytes]:
    rows = zip(batch["tokens"], batch["image"])
    return [hashlib.sha256(tokens.tobytes() + image.tobytes()).digest() for tokens, image in rows]


def run(cfg: DataConfig, start: int, end: int, hosts: int = 1) -> list[str]:
    """The hash of each step's global batch, the rows of each host read by itself."""
    rows: list[list[bytes]] = [[] for _ in range(start, end)]
    for host in range(hosts):
        with batches(cfg, start, host, hosts) as read:
            for step in range(start, end):
                rows[step - start] += row_hashes(next(read))
    return [hashlib.sha256(b"".join(each)).hexdigest() for each in rows]


def child(folder: Path, out: Path, changes: dict, start: int, end: int):
    """Append a line for each step, as a run that will be killed."""
    with out.open("a") as file, batches(settings(folder, **changes), start) as read:
        for step in range(start, end):
            line = hashlib.sha256(b"".join(row_hashes(next(read)))).hexdigest()
            file.write(f"{step} {line}\n")
            file.flush()


def killed(folder: Path, shuffle: str, steps: int, kills: int, rng) -> list[str]:
    """The hashes of a run that is killed again and again, and of how many kills."""
    out, done = folder / f"killed_{shuffle}.txt", []
    ways = ({}, {"workers": 1}, {"cache_mb": 100}, {"workers": 3})
    for attempt in range(kills + 1):
        changes = {"shuffle": shuffle} | ways[attempt % len(ways)]
        end = steps if attempt == kills else min(steps, len(done) + steps)
        command = [sys.executable, __file__, "--child", str(folder), str(out), json.dumps(changes)]
        process = subprocess.Popen([*command, str(len(done)), str(end)], start_new_session=True)
        if attempt < kills:
            goal = len(done) + int(rng.integers(0, 2 * steps // kills))
            while len(_lines(out)) <= min(goal, steps - 2) and process.poll() is None:
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = _lines(out)
        out.write_text("".join(f"{number} {line}\n" for number, line in enumerate(done)))
    return done


def _lines(out: Path) -> list[str]:
    """Whole lines, each of which must be of the step after the last."""
    text = out.read_text() if out.exists() else ""
    found = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
    assert [int(step) for step, _ in found] == list(range(len(found)))
    return [line for _, line in found]


def compare(folder: Path, shuffle: str, steps: int, kills: int) -> bool:
    rng, cfg = np.random.default_rng(0), settings(folder, shuffle=shuffle)
    expected = run(cfg, 0, steps)
    total = hashlib.sha256("".join(expected).encode()).hexdigest()[:16]
    print(f"{shuffle}: {steps} steps of {BATCH}, {len(set(expected))} different, hash {total}", flush=True)  # fmt: skip
    fine = len(set(expected)) == steps

    def check(name: str, found: list[str], wanted: list[str]):
        nonlocal fine
        fine = fine and found == wanted
        equal = sum(one == other for one, other in zip(found, wanted))
        print(f"  {name:44} {equal} of {len(wanted)} equal", flush=True)

    for hosts in (2, 4, 8):
        check(f"{hosts} hosts", run(cfg, 0, steps, hosts), expected)
    for workers in (1, 3):
        check(f"{workers} workers", run(dataclasses.replace(cfg, workers=workers), 0, steps), expected)  # fmt: skip
    for state in ("filled", "full"):
        check(f"a cache that is {state}", run(dataclasses.replace(cfg, cache_mb=1000), 0, steps), expected)  # fmt: skip
    starts = sorted({0, 1, steps - 1, *rng.integers(0, steps, 37).tolist()})
    found = [run(cfg, start, start + 1, int(rng.choice([1, 4])))[0] for start in starts]
    check("first batches of starts all over the run", found, [expected[start] for start in starts])
    check(f"killed {kills} times and resumed", killed(folder, shuffle, steps, kills, rng), expected)
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)  # fmt: skip
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, out, changes, start, end = args.child
        child(Path(folder), Path(out), json.loads(changes), int(start), int(end))
        return
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name))
        fine = [compare(Path(name), shuffle, args.steps, args.kills) for shuffle in ("global", "block")]  # fmt: skip
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    main()

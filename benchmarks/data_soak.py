"""Reads for a long time with 1 % bad samples: memory stays flat, no sample is lost or repeated.

    python benchmarks/data_soak.py --minutes 30 --workers 2
    python benchmarks/data_soak.py --minutes 30 --workers 2 --bucket --pause 0.1

Each picture is of one color, which is its number, so that what arrives can be told. Of every epoch
it is checked that each good sample came once, and that substitutes came where the bad ones stood.
A worker process is killed now and then. With `--bucket` the shards lie behind slow_server.py and are
read ahead in blocks, in a window smaller than the data.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.config import DataConfig, PreprocessConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import Batches, train_batches
from clip_jax.data.orders import make_order
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tokenizers.registry import ClipTokenizer

SHARDS, SAMPLES, BATCH = 40, 250, 125  # an epoch is 80 batches
WARM_UP = 0.2  # share of the time before memory must be flat
IN_BUCKET = {"index": "never", "read_ahead_mb": 24, "shuffle_window_mb": 8}  # of 20 MB of data


def bad(number: int) -> str | None:
    """What is wrong with a sample, for one in a hundred."""
    kinds = {37: "truncated", 137: "no caption", 237: "html", 337: "empty"}
    return kinds.get(number % 400)


def make(folder: Path):
    """The shards, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        path = folder / f"{shard:05d}.tar"
        if path.exists():
            continue
        with tarfile.open(path.with_suffix(".partial"), "w") as tar:
            for number in range(shard * SAMPLES, (shard + 1) * SAMPLES):
                file = io.BytesIO()
                Image.new("RGB", (64, 48), (number // 256, number % 256, 0)).save(file, "PNG")
                image, text, kind = file.getvalue(), b"a caption", bad(number)
                image = {"truncated": image[:60], "html": b"<html>", "empty": b""}.get(kind, image)
                text = b"" if kind == "no caption" else text
                for suffix, data in (("png", image), ("txt", text)):
                    info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        path.with_suffix(".partial").rename(path)
    sizes = {f"{shard:05d}.tar": SAMPLES for shard in range(SHARDS)}
    (folder / "sizes.json").write_text(json.dumps(sizes))


def resident() -> float:
    """Megabytes of memory of this process and its workers that no file backs."""
    total = 0
    for pid in (os.getpid(), *(process.pid for process in active_children())):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:  # a worker that was just killed
            continue
        anonymous = re.search(r"RssAnon:\s+(\d+)", status)  # a zombie has none
        total += int(anonymous[1]) if anonymous else 0
    return total / 1024


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the folder behind a slow server."""
    command = [sys.executable, Path(__file__).with_name("slow_server.py"), folder]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.kill()
        server.wait()


def check_epoch(seen: list[int], epoch: int, order: Callable):
    """Each good sample once, in its place; something good where a bad one stands."""
    total = SHARDS * SAMPLES
    rows = order(np.arange(epoch * total, (epoch + 1) * total))
    if sorted(rows.index.tolist()) != list(range(total)):
        raise SystemExit(f"epoch {epoch} does not hold each sample once")
    for place, (expected, found) in enumerate(zip(rows.index.tolist(), seen, strict=True)):
        if (bad(expected) is None and found != expected) or bad(found) is not None:
            raise SystemExit(f"epoch {epoch}, place {place}: {found} instead of {expected}")


def soak(batches: Batches, seconds: float, workers: int, pause: float, order: Callable):
    """Read and check until the time is over."""
    memory, seen, epochs, killed = [], [], 0, 0
    start = shown = time.monotonic()
    while time.monotonic() - start < seconds:
        time.sleep(pause)
        image_BHWC = next(batches)["image"]
        seen += (image_BHWC[:, 0, 0, 0].astype(int) * 256 + image_BHWC[:, 0, 0, 1]).tolist()
        if len(seen) == SHARDS * SAMPLES:
            check_epoch(seen, epochs, order)
            seen, epochs = [], epochs + 1
            if workers and random.random() < 0.2:
                os.kill(random.choice(active_children()).pid, signal.SIGKILL)
                killed += 1
        if time.monotonic() - shown > 5:
            shown = time.monotonic()
            memory.append((shown - start, resident()))
            print(f"{memory[-1][0]:6.0f} s  {epochs} epochs  {memory[-1][1]:.0f} MB", flush=True)
    flat = [value for at, value in memory if at > WARM_UP * seconds]
    # With a worker just killed it is low for a moment: medians of the first and the last third.
    third = max(1, len(flat) // 3)
    first, last = np.median(flat[:third]), np.median(flat[-third:])
    counts = batches.bad_samples.to_json()
    reasons = Counter(counts["by_reason"])
    print(f"{epochs} epochs of {SHARDS * SAMPLES} samples checked, {killed} workers killed")
    print(f"{counts['bad']} bad of {counts['seen']}: {dict(reasons)}")
    print(f"memory {first:.1f} MB, at the end {last:.1f} MB: {last / first - 1:+.1%}")
    if abs(last / first - 1) > 0.05:
        raise SystemExit("memory is not flat")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0, help="seconds before each batch")
    parser.add_argument("--bucket", action="store_true", help="behind a slow server, in blocks")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/clip_jax_soak"))
    args = parser.parse_args()
    make(args.folder)
    indexes = {"data_dir": str(args.folder / "indexes")}
    cfg = DataConfig(batch_size=BATCH, workers=args.workers, max_bad_share=0.02, **indexes)
    reading = {
        "image_size": 32,
        "preprocess": PreprocessConfig(),
        "seed": 0,
        "bad_samples": BadSamples(),
    }
    with contextlib.ExitStack() as stack:
        names = f"{args.folder}/*.tar"
        if args.bucket:
            url = stack.enter_context(served(args.folder))
            names = f"{url}/{{00000..{SHARDS - 1:05d}}}.tar"
            cfg = dataclasses.replace(cfg, **IN_BUCKET)
        source = open_source(f"tar:{names}", "train", cfg)
        order = make_order([source], cfg, seed=0)
        print(f"order: {order}", flush=True)
        batches = stack.enter_context(train_batches(source, ClipTokenizer(), cfg, **reading))
        soak(batches, args.minutes * 60, args.workers, args.pause, order.rows)


if __name__ == "__main__":
    main()

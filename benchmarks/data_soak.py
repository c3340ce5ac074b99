"""Reads for a long time with 1 % bad samples: memory stays flat, no sample is lost or repeated.

    python benchmarks/data_soak.py --minutes 30 --workers 2

Each picture is of one color, which is its number, so that what arrives can be told. Of every epoch
it is checked that each good sample came once, and that substitutes came where the bad ones stood.
A worker process is killed now and then.
"""

import argparse
import io
import os
import random
import signal
import tarfile
import time
from collections import Counter
from multiprocessing import active_children
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.config import DataConfig, PreprocessConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import Batches, train_batches
from clip_jax.data.shuffle import Mixture
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tokenizers.registry import ClipTokenizer

SHARDS, SAMPLES, BATCH = 4, 2_500, 125  # an epoch is 80 batches
WARM_UP = 0.2  # share of the time before memory must be flat


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


def resident() -> float:
    """Megabytes of memory of this process and its workers that no file backs."""
    total = 0
    for pid in (os.getpid(), *(process.pid for process in active_children())):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:  # a worker that was just killed
            continue
        total += int(status.split("RssAnon:")[1].split()[0])
    return total / 1024


def check_epoch(seen: list[int], epoch: int):
    """Each good sample once, in its place; something good where a bad one stands."""
    total = SHARDS * SAMPLES
    _, order, _ = Mixture([total]).rows(np.arange(epoch * total, (epoch + 1) * total), 0)
    for place, (expected, found) in enumerate(zip(order.tolist(), seen, strict=True)):
        if (bad(expected) is None and found != expected) or bad(found) is not None:
            raise SystemExit(f"epoch {epoch}, place {place}: {found} instead of {expected}")


def soak(batches: Batches, seconds: float, workers: int):
    """Read and check until the time is over."""
    memory, seen, epochs, killed = [], [], 0, 0
    start = shown = time.monotonic()
    while time.monotonic() - start < seconds:
        image_BHWC = next(batches)["image"]
        seen += (image_BHWC[:, 0, 0, 0].astype(int) * 256 + image_BHWC[:, 0, 0, 1]).tolist()
        if len(seen) == SHARDS * SAMPLES:
            check_epoch(seen, epochs)
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
    parser.add_argument("--folder", type=Path, default=Path("/tmp/clip_jax_soak"))
    args = parser.parse_args()
    make(args.folder)
    cfg = DataConfig(batch_size=BATCH, workers=args.workers, max_bad_share=0.02)
    source = open_source(f"tar:{args.folder}/*.tar", "train", cfg)
    reading = {
        "image_size": 32,
        "preprocess": PreprocessConfig(),
        "seed": 0,
        "bad_samples": BadSamples(),
    }
    with train_batches(source, ClipTokenizer(), cfg, **reading) as batches:
        soak(batches, args.minutes * 60, args.workers)


if __name__ == "__main__":
    main()

"""What 400 million samples in tar shards cost a host: index memory, and the wait for a batch.

    python benchmarks/data_index_memory.py --folder /tmp/clip_jax_400m

Forty thousand shards of ten thousand samples each, which are links to one real shard, are given an
index as `clip-jax data index` would write it. A fresh process then opens them, reads batches in
training's shuffled order, and says how long the first one took and what memory is resident.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

SHARDS, SAMPLES = 40_000, 10_000
BATCH, BATCHES = 1024, 20


def make(folder: Path):
    """One shard, links to it, and the index of all of them."""
    from PIL import Image

    from clip_jax import storage
    from clip_jax.data.sources import tar_index, tar_scan

    folder.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 99, 199)).save(file, "JPEG")
    real = folder / "real"
    with tarfile.open(real, "w") as tar:
        for number in range(SAMPLES):
            for suffix, data in (("jpg", file.getvalue()), ("txt", f"caption {number}".encode())):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    paths = [folder / f"{number:05d}.tar" for number in range(SHARDS)]
    for path in paths:
        if not path.exists():
            path.symlink_to(real)
    (info,) = storage.stat([str(real)])
    shard, starts = tar_scan.scan(str(real), info)
    index = tar_index.places([str(path) for path in paths], folder)[0]
    with index.open("wb") as out:
        for _ in range(SHARDS):
            out.write(starts.tobytes())
        footer = json.dumps({"shards": [shard._replace(name=path.name) for path in paths]}).encode()
        out.write(footer + len(footer).to_bytes(8, "little") + tar_index.MAGIC)


def resident() -> dict[str, int]:
    """Bytes that this process holds in memory, by kind."""
    fields = {"RssAnon": 0, "RssFile": 0}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in fields:
            fields[name] = int(value.split()[0]) * 1024
    return fields


def read(folder: Path):
    """What a training process does at its start."""
    from clip_jax.config import DataConfig, PreprocessConfig
    from clip_jax.data.loader import train_batches
    from clip_jax.data.sources.registry import open_source
    from clip_jax.data.tokenizers.registry import ClipTokenizer

    tokenizer = ClipTokenizer()
    before = resident()
    start = time.perf_counter()
    cfg = DataConfig(batch_size=BATCH, data_dir=str(folder))
    spec = f"tar:{folder}/{{00000..{SHARDS - 1:05d}}}.tar"
    source = open_source(spec, "train", cfg)
    opened, held = time.perf_counter() - start, resident()
    options = {"image_size": 32, "preprocess": PreprocessConfig(), "seed": 0, "start_step": 123_456}
    with train_batches(source, tokenizer, cfg, **options) as batches:
        next(batches)
        first = time.perf_counter() - start
        for _ in range(BATCHES - 1):
            next(batches)
        after = resident()
    samples = len(source)
    grown = {name: held[name] - before[name] for name in held}
    # However often it is read at random, no more than the whole index can become resident.
    index = source._index.path.stat().st_size
    print(f"{samples:_} samples in {SHARDS:_} shards, {index / samples:.3f} bytes a sample on disk")
    print(f"opened in {opened:.2f} s, first batch of {BATCH} after {first:.2f} s")
    for name, value in grown.items():
        print(f"opening added {value / samples:.3f} bytes a sample of {name}")
    for name in after:
        print(f"after {BATCHES} batches {(after[name] - before[name]) / samples:.3f} of {name}")
    worst = (grown["RssAnon"] + index) / samples
    print(f"with the whole index resident: {worst:.2f} bytes a sample (limit 8)")
    if worst >= 8 or first >= 10:
        raise SystemExit("above the limit of 8 bytes or 10 seconds")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="/tmp/clip_jax_400m", type=Path)
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        return read(args.folder)
    make(args.folder)
    subprocess.run([sys.executable, __file__, "--folder", args.folder, "--read"], check=True)


if __name__ == "__main__":
    main()

"""What a model learns from data in global order and in blocks, over several seeds.

    python benchmarks/shuffle_accuracy.py FOLDER --steps 350 --seeds 0 1 2

The pairs of `shapes` as tar shards, in an order of their own and sorted by class, which is the worst order for blocks. A sample is
padded to 20 kB, so that a block of 4 MB has some 200 of the 24,576 samples, and a window of 64 MB an eighth of them.
The model and the settings are the demo's. Printed is the accuracy of every run on the test split, and the mean and
standard deviation of each order.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

from clip_jax.config import DataConfig
from clip_jax.data.sources.registry import open_source

SIZE, SHARD = 20 * 1024, 500  # bytes of a sample, samples of a shard
METRICS = ("eval/zero_shot_top1", "eval/zero_shot_held_out_top1", "eval/recall_at_1")
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "shapes_tiny.py"


def write_shards(folder: Path, data_dir: str, *, by_class: bool):
    """The training split, in the order of its classes or in the random one that it has."""
    folder.mkdir(parents=True)
    source = open_source("shapes", "train", DataConfig(data_dir=data_dir))
    numbers = np.arange(len(source))
    if by_class:
        # Scenes of two figures have no label: they come last, in the order of their captions.
        samples = (source[int(number)] for number in numbers)
        keys = [(99, one.captions[-1]) if one.label is None else (one.label, "") for one in samples]
        numbers = np.array(sorted(numbers, key=lambda number: keys[number]))
    for first in range(0, len(numbers), SHARD):
        with tarfile.open(folder / f"{first // SHARD:05d}.tar", "w") as tar:
            for place, number in enumerate(numbers[first : first + SHARD], first):
                sample = source[int(number)]
                text = "\n".join(sample.captions).encode()
                padding = bytes(max(0, SIZE - len(sample.image) - len(text) - 4 * 1024))
                for ending, data in (("png", sample.image), ("txt", text), ("pad", padding)):
                    member = tarfile.TarInfo(f"{place:06d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def train(args: argparse.Namespace, shards: Path, order: str, seed: int) -> dict[str, float]:
    name = f"{shards.name}-{order}-{args.window_mb}-{args.steps}-{seed}"
    workdir = args.folder / "runs" / name
    settings = {
        "config": CONFIG,
        "workdir": workdir,
        "steps": args.steps,
        "seed": seed,
        "data.source": f"tar:{shards}/*.tar",
        "data.caption-lines": "True",
        "data.eval-source": "shapes",
        "data.data-dir": args.data_dir,
        "data.shuffle": order,
        "data.shuffle-window-mb": args.window_mb,
        "evaluation.every-steps": args.steps,
    }
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    with (args.folder / "train.log").open("a") as log:
        subprocess.run([sys.executable, "-m", "clip_jax.cli", "train", *flags], stdout=log, stderr=log, check=True)  # fmt: skip
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: value for line in lines for name, value in line.items() if name in METRICS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--window-mb", type=int, default=64)
    parser.add_argument("--only", choices=["random", "sorted"])
    parser.add_argument("--orders", nargs="+", default=["global", "block"])
    args = parser.parse_args()
    for name in [args.only] if args.only else ["random", "sorted"]:
        shards = args.folder / name
        if not shards.exists():
            write_shards(shards, args.data_dir, by_class=name == "sorted")
        found = {
            order: [train(args, shards, order, seed) for seed in args.seeds]
            for order in args.orders
        }
        for order, runs in found.items():
            for metric in METRICS:
                values = np.array([run[metric] for run in runs])
                print(
                    f"{name:6} {order:6} {metric:30} {' '.join(f'{v:.4f}' for v in values)}  "
                    f"mean {values.mean():.4f}, standard deviation {values.std(ddof=1):.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

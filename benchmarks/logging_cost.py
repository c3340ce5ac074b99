"""How long logging keeps the training loop from going on, at every step, to metrics.jsonl and TensorBoard.

    python benchmarks/logging_cost.py

It prints the mean and the 99th percentile in microseconds of `Progress.step`, which is all that the
loop does for a logged step besides fetching its numbers, and both as shares of --every steps of
--step-ms, of which one is logged.
A writer beside the loop does the rest.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np

from clip_jax.config import LoggingConfig
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.progress import Progress


def measure(folder: Path, steps: int) -> np.ndarray:
    """Seconds of each logged step, with as many figures as a train step has."""
    figures = {f"figure_{number}": float(number) for number in range(14)} | {"loss": 1.0}
    cfg = LoggingConfig(every_steps=1, progress=False)
    taken = []
    with RunDirectory(folder) as run:
        sizes = {"start": 0, "steps": steps, "batch_size": 4096, "flops": 1e9}
        with Progress(run, cfg, **sizes) as progress:
            for step in range(1, steps + 1):
                began = time.perf_counter()
                progress.step(step, figures)
                taken.append(time.perf_counter() - began)
                time.sleep(0.002)  # a step, in which the writer may work
    return np.array(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=10, help="logging.every_steps")
    parser.add_argument("--step-ms", type=float, default=67.2, help="ViT-B-16 on an H100, by plan")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        taken = measure(Path(name) / "run", args.steps)[10:]
    mean, late = 1e6 * taken.mean(), 1e6 * np.percentile(taken, 99)
    whole = 1e3 * args.step_ms * args.every
    share = {"mean": mean / whole, "p99": late / whole}
    print(
        json.dumps(
            {
                "logged_steps": len(taken),
                "mean_us": round(mean, 1),
                "p99_us": round(late, 1),
                "percent_of_the_steps": {
                    name: round(100 * part, 4) for name, part in share.items()
                },
                "step_ms": args.step_ms,
                "every_steps": args.every,
            }
        )
    )


if __name__ == "__main__":
    main()

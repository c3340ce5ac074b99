"""What checkpoints cost: how long a save blocks the loop, and how long a restore takes.

    python benchmarks/checkpoint_cost.py --save ViT-B-16 --restore ViT-L-14 --folder /tmp/cost

The state is a whole training's: float32 parameters and both moments of AdamW, filled with random
bits so that nothing compresses. A save blocks the loop while the state is copied off the devices;
its files are written beside the training. A restore reads the
disk, not the page cache, and includes the check of every byte.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import sharding
from clip_jax.config import CheckpointConfig, MeshConfig, OptimizerConfig
from clip_jax.models.clip import create_model
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import TrainState, abstract_state

SAVE_EVERY_S = 300


def random_state(name: str) -> tuple[TrainState, TrainState]:
    """A training's state on all devices, and its shapes and shardings."""
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=1), steps=10)
    mesh = sharding.make_mesh(MeshConfig())
    abstract = abstract_state(mesh, model=create_model(name), optimizer=optimizer)
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == jnp.float32:
            return jax.device_put(rng.random(leaf.shape, np.float32), leaf.sharding)
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, abstract), abstract


def gigabytes(tree) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 1e9


def save_cost(name: str, folder: str) -> dict:
    """Seconds that saves block, each while nothing else is being written."""
    shutil.rmtree(folder, ignore_errors=True)
    state, _ = random_state(name)
    jax.block_until_ready(state)
    blocked, written = [], []
    with Checkpoints(folder, CheckpointConfig(every_steps=1, every_minutes=None)) as checkpoints:
        for step in range(1, 4):
            start = time.perf_counter()
            checkpoints.save(step, state, metadata={})
            blocked.append(time.perf_counter() - start)
            checkpoints.wait()
            written.append(time.perf_counter() - start)
    return {
        "model": name,
        "state_gb": round(gigabytes(state), 2),
        "blocked_s": [round(value, 2) for value in blocked],
        "on_disk_after_s": [round(value, 2) for value in written],
        f"share_of_{SAVE_EVERY_S}_s": round(float(np.median(blocked)) / SAVE_EVERY_S, 4),
    }


def forget_files(folder: str):
    """Drop the files from the page cache, so that the disk has to be read."""
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def restore_cost(name: str, folder: str) -> dict:
    """Seconds from opening the folder to arrays on the devices."""
    shutil.rmtree(folder, ignore_errors=True)
    state, abstract = random_state(name)
    cfg = CheckpointConfig(every_steps=1, every_minutes=None, keep_last=1)
    with Checkpoints(folder, cfg) as checkpoints:
        checkpoints.save(1, state, metadata={}, force=True)
    probe = [np.asarray(leaf).tobytes()[:64] for leaf in jax.tree.leaves(state)]
    size = gigabytes(state)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    forget_files(folder)
    start = time.perf_counter()
    with Checkpoints(folder, cfg) as checkpoints:
        restored = jax.block_until_ready(checkpoints.restore(abstract).state)
        seconds = time.perf_counter() - start
    assert probe == [np.asarray(leaf).tobytes()[:64] for leaf in jax.tree.leaves(restored)]
    return {"model": name, "state_gb": round(size, 2), "restored_after_s": round(seconds, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", help="measure saves of this architecture's state")
    parser.add_argument("--restore", help="measure a restore of this architecture's state")
    parser.add_argument("--folder", required=True, help="where the checkpoints go; emptied")
    args = parser.parse_args()
    if args.save:
        print(json.dumps({"save": save_cost(args.save, args.folder)}), flush=True)
    if args.restore:
        print(json.dumps({"restore": restore_cost(args.restore, args.folder)}), flush=True)
    shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()

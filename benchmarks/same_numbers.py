"""Hashes of 20 steps' losses and final parameters: run on two commits, equal lines are equal bits.

    PYTHONPATH=OLD python benchmarks/same_numbers.py > old.txt
    PYTHONPATH=NEW python benchmarks/same_numbers.py > new.txt
    diff old.txt new.txt

Where bits differ, `--save FOLDER` on both and `--compare OLD NEW` say by how much.

A tiny ViT and a tiny ResNet, one device and meshes of eight, both losses, 1 and 4 micro-batches.
"""

import argparse
import dataclasses
import hashlib
import itertools
import os
import pathlib
import zlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=3600"
)

import jax
import numpy as np

from clip_jax import sharding
from clip_jax.config import (
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelSettings,
    OptimizerConfig,
    TrainConfig,
)
from clip_jax.planning.steps import make_step

MODELS, LOSSES, PARTS = ("ViT-test", "RN-test"), ("softmax", "sigmoid"), (1, 4)
MESHES = {"1x1": (1, 1), "8x1": (8, 1), "4x2": (8, 2), "1x8": (8, 8)}  # devices, fsdp
STEPS, BATCH = 20, 64
# Programs this small run in no time; what takes time is to make them fast.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def first_state(step):
    """Step 0: parameters drawn by their names, zeros elsewhere, as AdamW starts."""

    def values(path, leaf):
        name = sharding.path_name(path)
        kind, _, name = name.partition("/")
        if name.endswith("logit_scale"):
            array = np.full(leaf.shape, 2.0)
        elif name.endswith(("scale", "var")) and kind in ("params", "batch_stats"):
            array = np.ones(leaf.shape)
        elif kind == "params":
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            # By the number of entries, as commits differ in how they shape a kernel.
            array = rng.normal(size=leaf.shape) * leaf.size**-0.25
        else:
            array = np.zeros(leaf.shape)
        return jax.device_put(array.astype(leaf.dtype), leaf.sharding, may_alias=False)

    return jax.tree_util.tree_map_with_path(values, step.state)


def batch_of(step, index: int) -> dict:
    rng = np.random.default_rng(index)

    def draw(name, leaf):
        high = {"image": 256, "tokens": step.config.text.vocab_size}[name]
        return jax.device_put(rng.integers(0, high, leaf.shape, leaf.dtype), leaf.sharding)

    return {name: draw(name, leaf) for name, leaf in step.batch.items()}


def digest(tree) -> str:
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        found.update(sharding.path_name(path).encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def compare(old: pathlib.Path, new: pathlib.Path):
    """The largest relative differences of the cases that both folders have."""
    for path in sorted(old.glob("*.npz")):
        if not (new / path.name).exists():
            continue
        ours, theirs = np.load(new / path.name), np.load(path)
        losses = abs(ours["losses"] - theirs["losses"]) / abs(theirs["losses"])
        first = np.flatnonzero(losses)[0] + 1 if losses.any() else "none"
        furthest = max(
            np.linalg.norm(ours[name] - theirs[name]) / np.linalg.norm(theirs[name])
            for name in theirs.files
            if np.any(theirs[name])
        )
        print(
            f"{path.stem}: losses {losses.max():.1e} (from step {first} on), arrays {furthest:.1e}"
        )


def trained(
    model: str, mesh: str, loss: str, parts: int, options: dict | None, save: pathlib.Path | None
) -> str:
    devices, fsdp = MESHES[mesh]
    known = {field.name for field in dataclasses.fields(ModelSettings)}
    ghost = parts > 1 and model.startswith("RN") and "ghost_batch_norm" in known
    cfg = TrainConfig(
        steps=STEPS,
        model=ModelSettings(
            name=model, dtype="float32", **{"ghost_batch_norm": True} if ghost else {}
        ),
        loss=LossConfig(kind=loss),
        data=DataConfig(batch_size=BATCH, accumulation=parts),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4),
        mesh=MeshConfig(fsdp=fsdp),
    )
    step = make_step(cfg, jax.devices()[:devices])
    program = step.lower().compile(compiler_options=options)
    state, losses = first_state(step), []
    for index in range(STEPS):
        state, metrics = program(state, batch_of(step, index))
        losses.append(jax.device_get(metrics["loss"]))
    params = {"params": state.params, "batch_stats": state.batch_stats}
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
        leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
        arrays = {sharding.path_name(path): np.ravel(leaf) for path, leaf in leaves}
        file = save / f"{model}_{mesh}_{loss}_{parts}.npz"
        np.savez(file, losses=np.array(losses, np.float64), **arrays)
    return f"losses {digest(losses)} parameters {digest(params)} last loss {losses[-1]:.6f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="compile without optimization")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--meshes", nargs="+", default=tuple(MESHES))
    parser.add_argument("--save", type=pathlib.Path, help="folder for losses and parameters")
    parser.add_argument("--compare", type=pathlib.Path, nargs=2, metavar=("OLD", "NEW"))
    args = parser.parse_args()
    if args.compare:
        return compare(*args.compare)
    for case in itertools.product(args.models, args.meshes, LOSSES, PARTS):
        found = trained(*case, QUICKLY if args.quick else None, args.save)
        print("{} {} {} x{}:".format(*case), found, flush=True)


if __name__ == "__main__":
    main()

"""Read a run's model out of its checkpoints, without touching a run that may still be training."""

import os
from collections.abc import Collection

import jax
import numpy as np
from etils import epath

from clip_jax.models.freezing import join_blocks, merge, variables_of
from clip_jax.runs import manifest, old_layouts

PARTS = ("params", "frozen", "batch_stats", "ema", "ema_batch_stats")
ATTEMPTS = 3  # the run may delete a step while it is being read


def read_variables(
    directory: str | os.PathLike,
    *,
    step: int | None = None,
    average: bool = True,
    flat: Collection[str] = ("image", "text"),
) -> tuple[dict, int]:
    """What `model.apply` takes, from a folder of checkpoints, and the step that it is of.

    Args:
      directory: `checkpoints` in a run directory.
      step: which one; None: the newest intact one.
      average: the running average of the parameters, where the run kept one.
      flat: parts whose attention kernels have no axis for heads, as earlier versions saved them.

    Returns:
      The variables as NumPy's arrays, and the step.

    Raises:
      FileNotFoundError: when there is no such checkpoint.
      ValueError: when none is intact.
    """
    directory = epath.Path(directory)
    for attempt in range(ATTEMPTS):
        found = _newest_intact(directory, step)
        try:
            return _read(directory / str(found), average, flat), found
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1 or (directory / str(found)).exists():
                raise
    raise AssertionError("the last attempt returns or raises")


def list_steps(directory: epath.Path) -> list[int]:
    """The steps that there are, damaged ones included, the newest first."""
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _newest_intact(directory: epath.Path, step: int | None) -> int:
    steps = list_steps(directory)
    if step is not None and step not in steps:
        raise FileNotFoundError(f"{directory} has no checkpoint of step {step}: it has {steps}")
    if not steps:
        raise FileNotFoundError(f"{directory} has no checkpoint yet: train first")
    problems = {}
    for candidate in steps if step is None else [step]:
        problem = manifest.damage(directory / str(candidate))
        if problem is None:
            return candidate
        problems[candidate] = problem
    listed = "; ".join(f"step {step}: {problem}" for step, problem in problems.items())
    raise ValueError(f"No checkpoint in {directory} is intact ({listed})")


def _read(path: epath.Path, average: bool, flat: Collection[str]) -> dict:
    import orbax.checkpoint as ocp  # here, as it is a fifth of the time of `import clip_jax`

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(path / "state").item_metadata.tree
        # The moments of the optimizer, two thirds of the bytes, are left alone.
        wanted = {name: tree[name] for name in PARTS if tree.get(name)}
        averages = average and "ema" in wanted
        for name in ("params", "batch_stats") if averages else ("ema", "ema_batch_stats"):
            wanted.pop(name, None)
        read = checkpointer.restore(
            path / "state",
            args=ocp.args.PyTreeRestore(
                item=jax.tree.map(
                    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted
                ),
                restore_args=jax.tree.map(
                    lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), wanted
                ),
                partial_restore=True,
            ),
        )
    params = read.get("ema") or read["params"]
    batch_stats = read.get("ema_batch_stats") or read.get("batch_stats", {})
    params = join_blocks(merge(params, read.get("frozen", {})))
    params |= {name: old_layouts.flatten(params[name]) for name in flat if name in params}
    return variables_of(params, batch_stats)

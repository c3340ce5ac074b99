"""A frozen tower whose last blocks train: its parameters in two parts, and whole again."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from clip_jax.models.tower import Tower, name_of


def split(params: dict, towers: Mapping[str, Tower], *, unlocked: int = 0) -> tuple[dict, dict]:
    """What trains and what does not.

    Args:
      params: of the whole model.
      towers: those that are frozen, by the names of their parameters.
      unlocked: their last blocks that train all the same, with what stands above the blocks.

    Returns:
      Two trees without a leaf in common. Of a tower that is in both, the frozen blocks are
      `locked_blocks`, which `models.layers.Transformer` applies before the others.
    """
    trained, frozen = dict(params), {}
    for tower, config in towers.items():
        parts = trained.pop(tower)
        if not unlocked:
            frozen[tower] = parts
            continue
        blocks = stacked_blocks(parts, config)
        locked = jax.tree.leaves(blocks)[0].shape[0] - unlocked
        top = {name: parts[name] for name in config.above_blocks if name in parts}
        rest = {name: parts[name] for name in parts if name not in (*top, "transformer")}
        trained[tower] = top | {"transformer": {"blocks": _rows(blocks, slice(locked, None))}}
        if locked:
            rest["transformer"] = {"locked_blocks": _rows(blocks, slice(locked))}
        frozen[tower] = rest
    return trained, frozen


def stacked_blocks(params: dict, tower: Tower) -> dict:
    """The parameters of a tower's blocks, one row of every array for each that is there.

    Raises:
      ValueError: its `depth` counts something else than such blocks.
    """
    blocks = params.get("transformer", {}).get("blocks", {})
    rows = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(blocks)}
    if len(rows) != 1 or not 0 < max(rows)[0] <= tower.depth:
        raise ValueError(
            "optimizer.layer_decay and model.unlocked_blocks go by the blocks of "
            f"clip_jax.models.layers.transformer, and {name_of(tower)} with depth={tower.depth} has none: "
            "set neither, or build its blocks with it"
        )
    return blocks


def merge(trained: dict, frozen: dict) -> dict:
    """Both parts in one tree, as the model's forward pass takes them."""
    both = {name: merge(trained[name], frozen[name]) for name in trained.keys() & frozen.keys()}
    return trained | frozen | both


def join_blocks(params: dict) -> dict:
    """The tree with each tower's blocks in one stack again; leaves are NumPy's."""
    if "locked_blocks" in params:
        stacks = params["locked_blocks"], params["blocks"]
        return {"blocks": jax.tree.map(lambda *parts: np.concatenate(parts), *stacks)}
    return {
        name: join_blocks(part) if isinstance(part, dict) else part for name, part in params.items()
    }


def variables_of(params: dict, batch_stats: dict) -> dict:
    """What `model.apply` takes."""
    return {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}


def _rows(blocks: Any, rows: slice) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], blocks)

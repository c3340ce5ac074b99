"""The arrays of a checkpoint by name: whether they can be read, and whether they fit a state."""

from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from clip_jax.sharding import path_name


def check_readable(directory: epath.Path):
    """Open the structure of the saved state: every array's shape and type.

    Raises:
      OSError: an array that was saved is not there to be read.
    """
    state = directory / "state"
    try:
        tree = ocp.StandardCheckpointHandler().metadata(state)
        leaves = jax.tree.leaves(getattr(tree, "tree", tree))
        complete = all(leaf.shape is not None and leaf.dtype is not None for leaf in leaves)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise OSError(f"{state} cannot be read after it was written: {reason}") from error
    if not leaves or not complete:
        raise OSError(f"{state} cannot be read after it was written: arrays are missing from it")


def compare(directory: epath.Path, saved_tree: Any, wanted_tree: Any):
    """Orbax would cast another type in silence and report another tree on three pages.

    Raises:
      ValueError: naming the arrays that differ.
    """
    saved, wanted = _leaves(saved_tree), _leaves(wanted_tree)
    differences = [
        f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        raise ValueError(
            f"The checkpoint {directory} is of another model or optimizer; {len(differences)} "
            f"arrays differ, such as {'; '.join(differences[:3])}"
        )


def _leaves(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): f"{np.dtype(x.dtype).name}{list(x.shape)}" for path, x in leaves}

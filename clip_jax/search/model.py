"""The encoders of queries on one device: few short inputs, for which a loop over blocks is slow on a CPU.

There XLA copies each block's parameters out of the stacked ones, in each turn of the loop, as many bytes as
the products read. Here each block has arrays of its own, and the loop is unrolled.
"""

# N: blocks of a stack.

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clip_jax.sharding import path_name

STACKED = "blocks"  # a part of the paths of stacked parameters
CAST = ("kernel", "embedding")  # ends of the names of what is multiplied or looked up
UNROLL = 64  # blocks, more than any tower has


class QueryModel:
    """A model's encoders, on the first device.

    Args:
      model: a CLIP model.
      variables: its parameters.
      dtype: of the matrix products and of the parameters in them; None: as the model has it.
    """

    def __init__(self, model: nn.Module, variables: Any, dtype: str | None = None):
        device = jax.local_devices()[0]
        config = model.config
        if dtype is not None and dtype != config.dtype:
            config = dataclasses.replace(config, dtype=dtype)
        unstacks = device.platform == "cpu"
        if unstacks:
            config = dataclasses.replace(config, unroll=UNROLL)
        self._model = model.clone(config=config)

        def place(path, leaf):
            name = path_name(path)
            parts = list(leaf) if unstacks and f"/{STACKED}/" in name and np.ndim(leaf) else [leaf]
            cast = dtype if dtype is not None and name.endswith(CAST) else None
            parts = [jax.device_put(np.asarray(part, cast), device) for part in parts]
            return _Stack(parts) if np.ndim(leaf) > np.ndim(parts[0]) else parts[0]

        self._variables = jax.tree_util.tree_map_with_path(place, variables)
        self._encode = jax.jit(self._apply, static_argnames="method")

    def encode(self, kind: Literal["image", "text"], x: np.ndarray) -> np.ndarray:
        """(batch, E) float32 of unit length, of pixels (batch, H, W, 3) or tokens (batch, length)."""
        return np.asarray(self._encode(self._variables, x, method=f"encode_{kind}"))

    def _apply(self, variables, x, *, method: str):
        # XLA takes a slice of what was stacked here from the array that was stacked.
        whole = jax.tree.map(
            lambda leaf: jnp.stack(leaf.parts) if isinstance(leaf, _Stack) else leaf,
            variables,
            is_leaf=lambda leaf: isinstance(leaf, _Stack),
        )
        return self._model.apply(whole, x, method=method)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Stack:
    """The parameters of N blocks, each by itself."""

    parts: list

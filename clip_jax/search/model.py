"""The encoders of queries on one device: few short inputs, for which a loop over blocks is slow on a CPU.

There XLA copies each block's parameters out of the stacked ones, in each turn of the loop, as many bytes as
the products read. Here each block has arrays of its own, and the loop is unrolled. Kernels lie there as
(outputs, inputs), from which products of few rows are up to 10 % faster.
"""

# N: blocks of a stack.

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clip_jax.sharding import path_name

STACKED = "blocks"  # a part of the paths of stacked parameters
CAST = ("kernel", "embedding")  # ends of the names of what is multiplied or looked up
UNROLL = 64  # blocks, more than any tower has
LEAST_COSINE = 0.9999  # of a vector with that of float32, with which a search finds the same
CPU_INFO = Path("/proc/cpuinfo")


class QueryModel:
    """A model's encoders, on the first device.

    Args:
      model: a CLIP model.
      variables: its parameters.
      dtype: of the factors of matrix products and of the parameters in them; None: as the model has it.

    Attributes:
      dtype: of those factors.
    """

    def __init__(self, model: nn.Module, variables: Any, dtype: str | None = None):
        device = jax.local_devices()[0]
        config = model.config
        unstacks = device.platform == "cpu"
        if unstacks:
            config = dataclasses.replace(config, unroll=UNROLL)
        # On a CPU `numerics.project` rounds what is multiplied to the kernel's type. All else stays in
        # float32, which is faster there than bfloat16, and halves the error.
        if dtype is not None and not (unstacks and dtype == "bfloat16"):
            config = dataclasses.replace(config, dtype=dtype)
        self._model = model.clone(config=config, checked=False)
        self.dtype = dtype or config.dtype

        def place(path, leaf):
            name = path_name(path)
            cast = dtype if dtype is not None and name.endswith(CAST) else None
            if not (unstacks and f"/{STACKED}/" in name and np.ndim(leaf)):
                return jax.device_put(np.asarray(leaf, cast), device)
            turned = name.endswith("kernel") and np.ndim(leaf) == 3
            parts = [np.asarray(part.T if turned else part, cast, order="C") for part in leaf]
            return _Stack([jax.device_put(part, device) for part in parts], turned)

        self._variables = jax.tree_util.tree_map_with_path(place, variables)
        self._encode = jax.jit(self._apply, static_argnames="method")

    def encode(self, kind: Literal["image", "text"], x: np.ndarray) -> np.ndarray:
        """(batch, E) float32 of unit length, of pixels (batch, H, W, 3) or tokens (batch, length)."""
        return np.asarray(self._encode(self._variables, x, method=f"encode_{kind}"))

    def _apply(self, variables, x, *, method: str):
        # XLA takes a slice of what was stacked here from the array that was stacked.
        whole = jax.tree.map(
            lambda leaf: leaf.stacked() if isinstance(leaf, _Stack) else leaf,
            variables,
            is_leaf=lambda leaf: isinstance(leaf, _Stack),
        )
        return self._model.apply(whole, x, method=method)


def fast_model(
    model: nn.Module, variables: Any, inputs: Mapping[Literal["image", "text"], np.ndarray]
) -> QueryModel:
    """The encoders in bfloat16 where that is faster and its vectors are as good, else as the model has them.

    Args:
      model: a CLIP model.
      variables: its parameters.
      inputs: of each encoder, with which its vectors in both types are compared.
    """
    whole = QueryModel(model, variables)
    on_cpu = jax.local_devices()[0].platform == "cpu"
    if not on_cpu or model.config.dtype != "float32" or not multiplies_bfloat16():
        return whole
    # Pictures one by one, for which there is a program anyway.
    parts = [
        (kind, part)
        for kind, x in inputs.items()
        for part in (x[:, None] if kind == "image" else [x])
    ]
    expected = [whole.encode(kind, x) for kind, x in parts]
    del whole  # so that memory holds one of both
    half = QueryModel(model, variables, "bfloat16")
    for (kind, x), z_BE in zip(parts, expected):
        # Not `<`: a cosine that is no number is not good either.
        if not (half.encode(kind, x) * z_BE).sum(axis=1).min() >= LEAST_COSINE:
            del half
            return QueryModel(model, variables)
    return half


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, as far as Linux says."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and bool({"amx_bf16", "avx512_bf16"} & set(flags[1].split()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Stack:
    """The parameters of N blocks, each by itself."""

    parts: list
    turned: bool = dataclasses.field(metadata={"static": True})  # each is transposed

    def stacked(self) -> jax.Array:
        return jnp.stack([part.T if self.turned else part for part in self.parts])

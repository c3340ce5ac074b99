"""Checkpoints of earlier versions, whose attention kernels had axes for heads, read into flat ones."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from clip_jax.sharding import path_name

# Parameters, and all that the optimizer and the average keep under the same names.
HAD_HEADS = re.compile(
    r"((?P<stack>blocks)/attention|pool)/(?P<layer>qkv|query|key|value|key_value|out)/"
    r"(?P<part>kernel|bias)$"
)
# Adafactor's second moments: whole ones, or the means of rows and of columns.
SECOND_MOMENT = re.compile(r".*/(?P<kind>v|v_row|v_col)/(?=(image|text)/)")
Shape = tuple[int, ...]


def flat_shape(name: str, shape: Shape) -> Shape:
    """The shape that an array of this name has today; a flat one stays as it is."""
    match = HAD_HEADS.search(name)
    if match is None or len(shape) < 2:
        return shape
    depth, axes = (shape[:1], shape[1:]) if match["stack"] else ((), shape)
    if match["part"] == "bias":
        return (*depth, math.prod(axes))
    if match["layer"] == "out":
        return (*depth, math.prod(axes[:-1]), axes[-1])
    return (*depth, axes[0], math.prod(axes[1:]))


def flatten(params: dict) -> dict:
    """Parameters, as NumPy's arrays, in today's shapes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x.reshape(flat_shape(path_name(path), x.shape)), params
    )


def as_saved(wanted: Any, saved: Any) -> Any:
    """What to restore: `wanted`, with the saved shapes of those arrays that `as_wanted` converts.

    Args:
      wanted: a train state of `jax.ShapeDtypeStruct`s with shardings.
      saved: the metadata of a checkpoint: a `shape` at every leaf.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in _named(saved).items()}
    goals = {name: leaf.shape for name, leaf in _named(wanted).items()}

    def converts(name: str) -> bool:
        if flat_shape(name, shapes[name]) == goals[name]:
            return True
        # A moment that was kept whole, as no two axes of the kernel were long enough.
        if not (match := SECOND_MOMENT.match(name)):
            return False
        whole, kernel = _whole(name, match), f"params/{name[match.end() :]}"
        return flat_shape(whole, shapes.get(whole, ())) == goals.get(kernel)

    def to_read(path, leaf):
        name = path_name(path)
        if shapes.get(name, leaf.shape) == leaf.shape or not converts(name):
            return leaf
        sharding = _sharding_as_saved(leaf, shapes[name])
        return jax.ShapeDtypeStruct(shapes[name], leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(to_read, wanted)


def as_wanted(restored: Any, wanted: Any) -> Any:
    """The restored arrays in the shapes of `wanted`, on its shardings."""
    arrays, goals = _named(restored), _named(wanted)

    def convert(path, leaf):
        name = path_name(path)
        array = arrays[name]
        if array.shape == leaf.shape:
            return array
        put = lambda fn, x: jax.jit(fn, out_shardings=leaf.sharding)(x)  # noqa: E731
        if math.prod(array.shape) == math.prod(leaf.shape):
            return put(lambda x: x.reshape(leaf.shape), array)
        match = SECOND_MOMENT.match(name)
        if match["kind"] == "v":
            return put(lambda x: jnp.zeros(leaf.shape, x.dtype), array)
        kernel = goals[f"params/{name[match.end() :]}"].shape
        # As optax has it: `v_row` is the mean over the longest axis, `v_col` over the next.
        axis = np.argsort(kernel)[-1 if match["kind"] == "v_row" else -2]
        return put(lambda x: x.reshape(kernel).mean(axis=axis), arrays[_whole(name, match)])

    return jax.tree_util.tree_map_with_path(convert, wanted)


def _whole(name: str, match: re.Match) -> str:
    return f"{name[: match.start('kind')]}v{name[match.end('kind') :]}"


def _sharding_as_saved(leaf: jax.ShapeDtypeStruct, shape: Shape) -> Sharding:
    """The same axis split: no device holds more of the array than it will in its new shape."""
    spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
    if "fsdp" not in spec or len(shape) < len(leaf.shape):
        return NamedSharding(leaf.sharding.mesh, P()) if spec else leaf.sharding
    axis = spec.index("fsdp")
    after = len(spec) - axis - 1
    # Kernels are split along the width of the residual stream, which had one axis before too.
    old = axis if axis < len(shape) and shape[axis] == leaf.shape[axis] else len(shape) - after - 1
    return NamedSharding(leaf.sharding.mesh, P(*(None,) * old, "fsdp"))


def _named(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}

"""What both losses ask of their arguments, and how they tell a person what is wrong."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from clip_jax.losses.distributed import STRATEGIES
from clip_jax.losses.tiling import check_floating
from clip_jax.numerics import accumulator, promote, pvary_like, varying_axes

AxisName = str | Sequence[str] | None


def checked(
    z_image_BE: jax.Array,
    z_text_BE: jax.Array,
    scalars: dict[str, jax.Array],
    *,
    axis_name: AxisName,
    distributed: str,
    tile: int | None,
) -> tuple[tuple[str, ...], tuple[jax.Array, ...]]:
    """The axes as a tuple; then embeddings and scalars in their types, varying alike.

    Raises:
      ValueError: naming the argument that cannot be meant.
    """
    if distributed not in ("replicated", *STRATEGIES):
        raise ValueError(
            f"distributed={distributed!r} is not one of 'replicated', 'gather' and 'ring'"
        )
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 1):
        raise ValueError(f"tile={tile!r} must be a whole number of rows, at least 1, or None")
    if tile is not None and distributed == "replicated":
        raise ValueError(
            f'tile={tile} and distributed="replicated" exclude each other: use "gather"'
        )
    check_embeddings(z_image_BE, z_text_BE)
    for name, scalar in scalars.items():
        if scalar is None:
            raise ValueError(f"{name} is None: this loss needs a model that has a {name}")
        chex.assert_rank(jnp.asarray(scalar), 0, custom_message=name, exception_type=ValueError)

    axes = () if axis_name is None else axis_name
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    if missing := [
        axis for axis in axes if axis not in varying_axes(z_image_BE) & varying_axes(z_text_BE)
    ]:
        raise ValueError(
            f"axis_name={axis_name!r}: the embeddings are not split over {missing}. Call the loss "
            "inside jax.shard_map with check_vma=True (its default) and with in_specs that split "
            "the first axis of both embeddings over these axes of the mesh"
        )
    z_image_BE, z_text_BE = promote(z_image_BE, z_text_BE)
    dtype = accumulator(z_image_BE.dtype)
    return axes, pvary_like(
        z_image_BE, z_text_BE, *(jnp.asarray(scalar, dtype) for scalar in scalars.values())
    )


def check_embeddings(z_image_BE: jax.Array, z_text_BE: jax.Array):
    """Refuse what is not one text embedding for each image embedding."""
    for name, z in (("z_image_BE", z_image_BE), ("z_text_BE", z_text_BE)):
        chex.assert_rank(z, 2, custom_message=name, exception_type=ValueError)
        check_floating(name, z)
    if z_image_BE.shape != z_text_BE.shape:
        raise ValueError(
            f"z_image_BE has shape {z_image_BE.shape} and z_text_BE {z_text_BE.shape}: row i of "
            "both must belong to pair i, in one embedding space"
        )
    if z_image_BE.size == 0:
        raise ValueError(f"embeddings of shape {z_image_BE.shape} hold no pair")

"""Learned position embeddings of a square grid at another size."""

import math

import jax
import jax.numpy as jnp


def resize_grid(position_LD: jax.Array, extra: int, old_grid: int, grid: int) -> jax.Array:
    """Resize all but the first `extra` positions as an image, bicubic and antialiased (open_clip)."""
    position_LD = jnp.asarray(position_LD)
    D = position_LD.shape[1]
    position_hwD = position_LD[extra:].reshape(old_grid, old_grid, D)
    position_hwD = jax.image.resize(position_hwD, (grid, grid, D), "cubic", antialias=True)
    return jnp.concatenate([position_LD[:extra], position_hwD.reshape(grid * grid, D)])


def square_side(patches: int) -> int:
    """The side of a square grid of so many patches."""
    side = math.isqrt(max(patches, 0))
    if not patches or side * side != patches:
        raise ValueError(f"{patches} patches make no square grid")
    return side

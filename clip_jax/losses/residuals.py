"""A matrix of float32 in three bytes a number, as exact as its products are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PackedResiduals(NamedTuple):
    """Numbers of one matrix as whole multiples of a step."""

    high_RB: jax.Array  # int16
    low_RB: jax.Array  # uint8
    step: jax.Array  # scalar, a power of two

    @classmethod
    def of(cls, x_RB: jax.Array, bound: jax.Array) -> "PackedResiduals":
        """Keep numbers none of which is further from 0 than `bound`.

        The error is at most bound / 2**23, which is where float32 itself has the next number: for
        dot products of vectors whose lengths have the product `bound`, less than what their sums
        lose. If `bound` is not finite, as that of vectors with such numbers is, none comes back so.
        """
        _, exponent = jnp.frexp(jnp.maximum(bound, 2.0**-100))
        step = jnp.where(jnp.isfinite(bound), jnp.ldexp(jnp.float32(1), exponent - 23), jnp.nan)
        # A product may be rounded to a little more than its bound.
        steps_RB = jnp.clip(jnp.round(x_RB / step), 1 - 2**23, 2**23 - 1).astype(jnp.int32)
        return cls((steps_RB >> 8).astype(jnp.int16), (steps_RB & 255).astype(jnp.uint8), step)

    def restore(self) -> jax.Array:
        """The numbers, bit-identical at each call."""
        steps_RB = (self.high_RB.astype(jnp.int32) << 8) | self.low_RB.astype(jnp.int32)
        return steps_RB.astype(jnp.float32) * self.step


def max_norm(z_RE: jax.Array) -> jax.Array:
    """The length of the longest of the vectors; not a number if one has such."""
    return jnp.sqrt(jnp.square(z_RE.astype(jnp.float32)).sum(axis=1).max())

"""Which mesh axes an array differs along inside `jax.shard_map`, for formulas of gradients."""

import jax


def varying(x: jax.Array) -> frozenset[str]:
    """The mesh axes along which the devices have different values of x, inside `jax.shard_map`."""
    return jax.typeof(x).manual_axis_type.varying


def vary_alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, marked as varying over every axis that one of them varies over.

    JAX sums the gradient of what was marked over the axes of the mark. So a gradient formula
    that meets marked arrays alone needs no sum over devices: each gives its share.
    """
    axes = frozenset().union(*map(varying, arrays))
    return tuple(
        jax.lax.pcast(x, tuple(sorted(axes - varying(x))), to="varying") if axes - varying(x) else x
        for x in arrays
    )

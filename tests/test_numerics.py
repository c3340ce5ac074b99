"""Marks of what differs between devices, inside a user's `jax.shard_map`."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from clip_jax.numerics import pvary_like, varying_axes


def test_arrays_vary_where_one_of_them_does_and_keep_their_values(mesh):
    seen = []

    def inside(x_B, scale):
        seen.append((varying_axes(x_B), varying_axes(scale)))
        x_B, scale = pvary_like(x_B, scale)
        seen.append((varying_axes(x_B), varying_axes(scale)))
        return x_B * scale

    axes = ("data", "fsdp")
    fn = jax.shard_map(inside, mesh=mesh(4, 2), in_specs=(P(axes), P()), out_specs=P(axes))
    found = jax.jit(fn)(jnp.arange(8.0), jnp.float32(3))
    assert found.tolist() == [3.0 * value for value in range(8)]
    assert seen == [({*axes}, set()), ({*axes}, {*axes})]


def test_outside_of_a_mesh_nothing_varies():
    x = jnp.ones(3)
    assert varying_axes(x) == set()
    assert pvary_like(x)[0] is x

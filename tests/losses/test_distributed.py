"""Every way that devices meet gives the whole batch's loss, and moves no more than it must."""

import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.losses import softmax_loss
from clip_jax.losses.distributed import torus_sizes, torus_view

AXES = ("data", "fsdp")
MESHES = ((1, 1), (8, 1), (4, 2), (2, 4))
WAYS = (("replicated", None), ("gather", None), ("gather", 5), ("ring", None), ("ring", 5))
SCALARS = {"softmax": (14.3,), "sigmoid": (14.3, -4.5)}
COLLECTIVE = re.compile(
    r" = .*? (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("
)


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("kind", SCALARS)
def test_every_way_to_meet_has_the_replicated_loss_in_float64(
    kind, shape, mesh, pairs, value_and_gradients, reference, assert_close
):
    """Each way with `jax.grad` inside of shard_map on two meshes, and around it on the others."""
    arguments = (*pairs(64), *map(jnp.float32, SCALARS[kind]))
    expected = reference(kind, arguments)
    for index, (distributed, tile) in enumerate(WAYS):
        how = {"distributed": distributed, "tile": tile}
        inside = (index + MESHES.index(shape)) % 2 == 0
        actual = value_and_gradients(kind, arguments, mesh(*shape), inside=inside, **how)
        assert_close(actual, expected, name=f"{how} {inside=}")


def collectives(distributed: str, mesh) -> Counter:
    """The collectives in the compiled loss with its gradients, with the loops' bodies once."""
    specs = (P(AXES), P(AXES), P())

    def loss(*arguments):
        return softmax_loss(*arguments, axis_name=AXES, distributed=distributed)

    fn = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P())
    z_BE = jax.ShapeDtypeStruct((64, 24), jnp.float32)
    lowered = jax.jit(jax.value_and_grad(fn, (0, 1, 2))).lower(
        z_BE, z_BE, jax.ShapeDtypeStruct((), jnp.float32)
    )
    text = lowered.compile().as_text()
    return Counter(
        match[1] + " " + re.search(r"(\w+\[[\d,]*\])", match[0])[1]
        for match in COLLECTIVE.finditer(text)
    )


# Vectors of numbers a pair are small beside embeddings: maxima and sums of the log-sum-exps.
@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_gather_moves_the_texts_once_each_way_and_else_only_vectors(shape, mesh):
    assert collectives("gather", mesh(*shape)) == {
        "all-gather f32[64,24]": 1,
        "reduce-scatter f32[8,24]": 1,
        "all-reduce f32[64]": 2,
        "all-reduce f32[]": 1,
    }


@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_ring_never_holds_more_than_one_devices_texts_in_a_message(shape, mesh):
    # The log-sum-exps' lap and the gradients' lap: texts, their places, and what is known of them,
    # each sent before a loop and in it; the last lap's sums are sent home after it.
    assert collectives("ring", mesh(*shape)) == {
        "collective-permute f32[8,24]": 5,
        "collective-permute f32[8]": 8,
        "collective-permute s32[8]": 3,
        "all-reduce f32[]": 1,
    }


@pytest.mark.parametrize("tile", [None, 8])
def test_a_ring_forms_its_logits_once_unless_it_is_to_hold_little(tile, mesh):
    def products(tile) -> int:
        fn = jax.shard_map(
            lambda *a: softmax_loss(*a, axis_name=AXES, distributed="ring", tile=tile),
            mesh=mesh(8, 1),
            in_specs=(P(AXES), P(AXES), P()),
            out_specs=P(),
        )
        z_BE = jax.ShapeDtypeStruct((128, 24), jnp.float32)
        scale = jax.ShapeDtypeStruct((), jnp.float32)
        traced = jax.jit(jax.grad(fn, (0, 1))).trace(z_BE, z_BE, scale)
        return str(traced.jaxpr).count("dot_general[")

    # Once before the ring's loop and once in it: logits, of tiles twice, then their gradient's two
    # products.
    assert products(tile) == (2 * (1 + 2) if tile is None else 2 * (1 + 1 + 2))


def test_a_ring_of_embeddings_that_are_not_finite_has_no_finite_gradient(
    mesh, pairs, value_and_gradients
):
    image_BE, text_BE = pairs(64)
    image_BE[3, 0] = jnp.nan
    found = value_and_gradients(
        "softmax", (image_BE, text_BE, jnp.float32(100)), mesh(8, 1), distributed="ring"
    )
    assert not any(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("shape", "order", "sizes"),
    [
        ((4, 4), (0, 1), (4, 4)),
        ((4, 4), (1, 0), (4, 4)),
        ((2, 4, 8), (2, 0, 1), (8, 2, 4)),
        ((16,), (0,), (16,)),
        ((1, 8, 1), (0, 1, 2), (8,)),
    ],
)
def test_the_axes_of_a_torus_are_found_in_the_order_of_its_devices(shape, order, sizes):
    grid = np.moveaxis(np.indices(shape), 0, -1).transpose(*order, len(shape))
    assert torus_sizes([tuple(place) for place in grid.reshape(-1, len(shape))]) == sizes


def test_an_order_that_does_not_follow_a_torus_has_no_axes(mesh):
    ring = [(0, 0), (0, 1), (1, 1), (1, 0)]  # and back, as rings are laid into a plane
    assert torus_sizes(ring) == ()
    assert torus_sizes([(0, 0), (1, 1)]) == ()
    assert torus_sizes([(0, 0), (0, 1), (0, 2), (1, 0)]) == ()
    assert torus_view(mesh(4, 2)) is mesh(4, 2)  # CPUs lie in none
    gpus = [SimpleNamespace(platform="gpu", coords=(m, g)) for m in range(2) for g in range(8)]
    machines = SimpleNamespace(devices=np.array(gpus), axis_types=(None,))
    assert torus_view(machines) is machines

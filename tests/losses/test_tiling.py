"""Tiles change neither the loss nor its gradients, and hold no matrix of batch squared."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.losses import sigmoid_loss, softmax_loss

SCALARS = {"softmax": (14.3,), "sigmoid": (14.3, -4.5)}
LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


@pytest.mark.parametrize("kind", SCALARS)
@pytest.mark.parametrize("tile", [1, 6, 7, 46, 47, 48])
def test_a_tile_that_does_not_divide_the_batch_changes_nothing(
    kind, tile, pairs, value_and_gradients, reference, assert_close
):
    arguments = (*pairs(47), *map(jnp.float32, SCALARS[kind]))
    assert_close(value_and_gradients(kind, arguments, tile=tile), reference(kind, arguments))


@pytest.mark.parametrize("kind", SCALARS)
def test_memory_grows_with_the_batch_and_not_with_its_square(kind):
    def temporaries(batch: int) -> int:
        z_BE = jax.ShapeDtypeStruct((batch, 16), jnp.float32)
        scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * len(SCALARS[kind])
        fn = jax.value_and_grad(lambda *a: LOSSES[kind](*a, tile=32), (0, 1))
        compiled = jax.jit(fn).lower(z_BE, z_BE, *scalars).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8192) < 2.5 * temporaries(4096)
    assert temporaries(8192) < 8192 * 8192


@pytest.mark.parametrize("kind", SCALARS)
def test_rows_that_a_plain_jit_has_split_over_devices_stay_split(kind, mesh):
    """No device forms the similarities of another one's images, with tiles as without."""
    place = NamedSharding(mesh(8), P("data"))
    z_BE = jax.ShapeDtypeStruct((512, 16), jnp.float32, sharding=place)
    scalars = [jax.ShapeDtypeStruct((), jnp.float32)] * len(SCALARS[kind])
    fn = jax.value_and_grad(lambda *a: LOSSES[kind](*a, tile=8), (0, 1))
    compiled = jax.jit(fn).lower(z_BE, z_BE, *scalars).compile()
    products = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", compiled.as_text())
    assert products and max(int(a) * int(b) for a, b in products) <= 512 // 8 * 16
    assert compiled.output_shardings[1][0].spec == P("data")

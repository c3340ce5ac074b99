"""The towers' matrix product, against JAX's own rules in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clip_jax.models.linear import drawn_as_matrix
from clip_jax.numerics import project


def arrays(dtype):
    rng = np.random.default_rng(0)
    x_BLD = jnp.asarray(rng.normal(size=(3, 5, 8)), dtype)
    kernel, bias = rng.normal(size=(8, 6)), rng.normal(size=6)
    return x_BLD, jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)


def loss(fn):
    return lambda *a: jnp.square(fn(*a).astype(a[1].dtype)).mean()


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_product_and_gradients_are_those_of_an_einsum(dtype, error, with_bias):
    given = arrays(dtype)[: 3 if with_bias else 2]
    argnums = tuple(range(len(given)))
    found = jax.jit(jax.value_and_grad(loss(project), argnums))(*given)
    assert [g.dtype for g in found[1]] == [a.dtype for a in given]
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(a, np.float64), jnp.float64) for a in given]

        def plain(x_BLD, kernel, bias=0.0):
            y_BLK = jnp.einsum("bld,dk->blk", x_BLD, kernel)
            return y_BLK + jnp.broadcast_to(bias, y_BLK.shape)

        expected = jax.device_get(jax.value_and_grad(loss(plain), argnums)(*exact))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        distance = np.linalg.norm(np.asarray(a, np.float64) - b)
        assert distance <= error * max(1.0, np.linalg.norm(b))


def test_factors_have_16_bits_and_sums_32_in_both_directions():
    text = jax.jit(jax.grad(loss(project), (0, 1, 2))).lower(*arrays(jnp.bfloat16)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3  # forward, and a gradient for each factor
    for line in products:
        factors, result = line.rsplit(" : ", 1)[1].split(" -> ")
        assert factors.count("bf16") == 2 and "f32>" in result and "bf16" not in result


@pytest.mark.parametrize(
    "make", [nn.initializers.lecun_normal, lambda: nn.initializers.normal(0.3)]
)
def test_a_kernel_that_is_drawn_as_a_matrix_has_the_same_numbers(make):
    key, shape = jax.random.key(3), (3, 3, 2, 4)
    np.testing.assert_array_equal(drawn_as_matrix(make())(key, shape), make()(key, shape))

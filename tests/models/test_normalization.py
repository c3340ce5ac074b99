"""Layer normalisation and its own gradient, against JAX's rules in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax.models.normalization import normalize as own


def normalize(x_BLD, scale_D, bias_D, *, epsilon, dtype):
    return own(x_BLD, scale_D, bias_D, epsilon, dtype)


def plain(x_BLD, scale_D, bias_D, *, epsilon, dtype):
    """The formula, with JAX's own gradient: what a 16-bit LayerNorm would be without ours."""
    x_BLD = x_BLD.astype(jnp.promote_types(dtype, jnp.float32))
    x_BLD = x_BLD - x_BLD.mean(axis=-1, keepdims=True)
    variance_BL1 = jnp.square(x_BLD).mean(axis=-1, keepdims=True)
    z_BLD = x_BLD * jax.lax.rsqrt(variance_BL1 + epsilon)
    return (z_BLD * scale_D[None, None] + bias_D[None, None]).astype(dtype)


def arrays(dtype, offset: float = 1.0):
    rng = np.random.default_rng(0)
    x_BLD, dy_BLD = rng.normal(offset, 2, (4, 9, 96)), rng.normal(size=(4, 9, 96))
    scale_D, bias_D = rng.normal(1, 0.3, 96), rng.normal(size=96)
    wide = jnp.promote_types(dtype, jnp.float32)
    return [jnp.asarray(a, t) for a, t in
            ((x_BLD, dtype), (scale_D, wide), (bias_D, wide), (dy_BLD, dtype))]  # fmt: skip


def value_and_gradients(form, x_BLD, scale_D, bias_D, dy_BLD):
    def loss(*given):
        y_BLD = form(*given, epsilon=1e-5, dtype=x_BLD.dtype)
        return (y_BLD.astype(scale_D.dtype) * dy_BLD.astype(scale_D.dtype)).sum(), y_BLD

    gradients, y_BLD = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x_BLD, scale_D, bias_D)
    return [y_BLD, *gradients]


def exact(given):
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in given]
        return jax.device_get(value_and_gradients(plain, *wide))


def errors(found, expected):
    return [
        np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        for a, b in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("offset", [0.0, 1.0, 30.0])
def test_16_bit_gradients_are_as_exact_as_those_of_the_plain_form(offset):
    given = arrays(jnp.bfloat16, offset)
    expected = exact(given)
    ours = errors(value_and_gradients(normalize, *given), expected)
    theirs = errors(value_and_gradients(plain, *given), expected)
    assert all(a <= 1.01 * b + 1e-6 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-6), (jnp.float64, 1e-13)])
def test_wider_types_are_exact_to_their_rounding(dtype, error):
    with jax.enable_x64(dtype == jnp.float64):
        given = arrays(dtype)
        found = jax.device_get(value_and_gradients(normalize, *given))
    assert max(errors(found, exact(given))) < error


def test_what_the_backward_pass_keeps_is_the_input_in_its_16_bits():
    x_BLD, scale_D, bias_D, _ = arrays(jnp.bfloat16)
    form = lambda x: normalize(x, scale_D, bias_D, epsilon=1e-5, dtype=x.dtype)  # noqa: E731
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(form, x)[1], x_BLD))
    sizes = sorted((leaf.size, leaf.dtype.itemsize) for leaf in kept if leaf.size > 96)
    assert sizes == [(36 * 96, 2)]


def test_gradients_have_the_types_of_what_they_are_of():
    given = arrays(jnp.bfloat16)
    _, *gradients = value_and_gradients(normalize, *given)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_inside_a_shard_map_the_gain_gets_the_whole_batchs_gradient(mesh):
    x_BLD, scale_D, bias_D, dy_BLD = arrays(jnp.float32)
    axes = ("data", "fsdp")

    def over_devices(*given, epsilon, dtype):
        one = lambda x, s, b: normalize(x, s, b, epsilon=epsilon, dtype=dtype)  # noqa: E731
        specs = (P(axes), P(), P())
        return jax.shard_map(one, mesh=mesh(2, 2), in_specs=specs, out_specs=P(axes))(*given)

    found = value_and_gradients(over_devices, x_BLD, scale_D, bias_D, dy_BLD)
    expected = value_and_gradients(normalize, x_BLD, scale_D, bias_D, dy_BLD)
    assert max(errors(found, expected)) < 1e-6

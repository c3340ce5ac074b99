"""Layer normalisation, with a gradient of its own."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.hardware import target_device
from clip_jax.numerics import like_rows, pvary_like


class LayerNorm(nn.Module):
    """Layer normalisation in float32 at least, whatever the tower computes in."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        D = x_BLD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (D,))
        bias_D = self.param("bias", nn.initializers.zeros, (D,))
        return normalize(x_BLD, scale_D, bias_D, self.epsilon, self.dtype)


def normalize(
    x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float, dtype: jnp.dtype
) -> jax.Array:
    return _normalize(*pvary_like(x_BLD, scale_D, bias_D), epsilon, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x_BLD, scale_D, bias_D, epsilon: float, dtype: jnp.dtype) -> jax.Array:
    return _normalize_forward(x_BLD, scale_D, bias_D, epsilon, dtype)[0]


def _normalize_forward(x_BLD, scale_D, bias_D, epsilon: float, dtype: jnp.dtype):
    wide_BLD = x_BLD.astype(jnp.promote_types(dtype, jnp.float32))
    mean_BL1 = wide_BLD.mean(axis=-1, keepdims=True)
    variance_BL1 = jnp.square(wide_BLD - mean_BL1).mean(axis=-1, keepdims=True)
    inverse_BL1 = jax.lax.rsqrt(variance_BL1 + epsilon)
    scale_11D, bias_11D = (like_rows(v_D, x_BLD) for v_D in (scale_D, bias_D))
    y_BLD = ((wide_BLD - mean_BL1) * inverse_BL1 * scale_11D + bias_11D).astype(dtype)
    # x is kept in its 16 bits; with both numbers of each row the backward pass is one reduction.
    return y_BLD, (x_BLD, mean_BL1, inverse_BL1, scale_D, bias_D)


def _normalize_backward(epsilon: float, dtype: jnp.dtype, saved, given_BLD):
    x_BLD, mean_BL1, inverse_BL1, scale_D, bias_D = saved
    z_BLD = (x_BLD.astype(mean_BL1.dtype) - mean_BL1) * inverse_BL1
    dy_BLD = given_BLD.astype(z_BLD.dtype)
    dz_BLD = dy_BLD * like_rows(scale_D, dy_BLD)
    constant_BL1 = dz_BLD.mean(axis=-1, keepdims=True)
    along_BL1 = (dz_BLD * z_BLD).mean(axis=-1, keepdims=True)
    dx_BLD = inverse_BL1 * (dz_BLD - constant_BL1 - z_BLD * along_BL1)
    if target_device().platform == "gpu":
        # Sums over rows are another kernel there, which had better read 16 bits again: XLA would
        # write products of both in float32 for it.
        x_BLD, again_BLD = jax.lax.optimization_barrier((x_BLD, given_BLD))
        z_BLD = (x_BLD.astype(mean_BL1.dtype) - mean_BL1) * inverse_BL1
        dy_BLD = again_BLD.astype(z_BLD.dtype)
    rows = tuple(range(x_BLD.ndim - 1))
    d_scale_D = (dy_BLD * z_BLD).sum(axis=rows).astype(scale_D.dtype)
    return dx_BLD.astype(x_BLD.dtype), d_scale_D, dy_BLD.sum(axis=rows).astype(bias_D.dtype)


_normalize.defvjp(_normalize_forward, _normalize_backward)

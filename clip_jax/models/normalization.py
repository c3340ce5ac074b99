"""Layer normalisation with a gradient of its own: one pass, and a result in the type of its input."""

import functools

import jax
import jax.numpy as jnp

from clip_jax.numerics import accumulator, pvary_like


def normalize(
    x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, *, epsilon: float, dtype: jnp.dtype
) -> jax.Array:
    """Zero mean and unit variance along D, then scale and bias; computed in float32 at least.

    JAX's own rules would write float32 arrays of x's size in the backward pass. Kept for it are x
    as it came and two numbers a row.
    """
    return _normalize(*pvary_like(x_BLD, scale_D, bias_D), epsilon, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x_BLD, scale_D, bias_D, epsilon: float, dtype: jnp.dtype):
    return _forward(x_BLD, scale_D, bias_D, epsilon, dtype)[0]


def _forward(x_BLD, scale_D, bias_D, epsilon: float, dtype: jnp.dtype):
    wide_BLD = x_BLD.astype(accumulator(dtype))
    mean_BL = wide_BLD.mean(axis=-1)
    wide_BLD = wide_BLD - mean_BL[..., None]
    inverse_BL = jax.lax.rsqrt(jnp.square(wide_BLD).mean(axis=-1) + epsilon)
    y_BLD = (wide_BLD * inverse_BL[..., None] * scale_D + bias_D).astype(dtype)
    return y_BLD, (x_BLD, mean_BL, inverse_BL, scale_D)


def _backward(epsilon: float, dtype: jnp.dtype, saved, dy_BLD):
    x_BLD, mean_BL, inverse_BL, scale_D = saved
    wide = accumulator(dtype)
    unit_BLD = (x_BLD.astype(wide) - mean_BL[..., None]) * inverse_BL[..., None]
    dy_BLD = dy_BLD.astype(wide)
    rows = tuple(range(x_BLD.ndim - 1))
    d_scale_D, d_bias_D = (dy_BLD * unit_BLD).sum(axis=rows), dy_BLD.sum(axis=rows)
    d_unit_BLD = dy_BLD * scale_D
    along_BL1 = (d_unit_BLD * unit_BLD).mean(axis=-1, keepdims=True)
    dx_BLD = d_unit_BLD - d_unit_BLD.mean(axis=-1, keepdims=True) - unit_BLD * along_BL1
    dx_BLD = (dx_BLD * inverse_BL[..., None]).astype(x_BLD.dtype)
    return dx_BLD, d_scale_D.astype(scale_D.dtype), d_bias_D.astype(scale_D.dtype)


_normalize.defvjp(_forward, _backward)

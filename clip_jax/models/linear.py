"""The linear layer of both towers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.numerics import project, project_apart


def drawn_as_matrix(initializer: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """The same numbers for a kernel of more axes, drawn as the matrix (inputs, features) that it is.

    XLA's CPU backend compiles a draw of four axes seven times as long as one of two.
    """

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        matrix = initializer(key, (math.prod(shape[:-1]), shape[-1]), dtype)
        return matrix.reshape(shape)

    return draw


class Dense(nn.Module):
    """x (..., inputs) times a kernel (inputs, features), plus a bias: (..., features).

    Heads have no axis of their own in a kernel or a bias: copies between layouts would cost more
    than they explain.

    Attributes:
      features: numbers of the result.
      std: of the kernel's normal initialisation.
      dtype: of the factors and of the result; parameters are float32.
      apart: the result is that of `numerics.project_apart`, for `numerics.add_bias`.
    """

    features: int
    std: float
    dtype: jnp.dtype
    use_bias: bool = True
    apart: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, shift: jax.Array | None = None
    ) -> jax.Array | tuple[jax.Array, jax.Array | None]:
        """The layer of x + shift, whose product is part of the bias: no pass over x adds it."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.std), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if shift is not None:
            bias = bias + jnp.dot(shift, kernel, precision=jax.lax.Precision.HIGHEST)
        return (project_apart if self.apart else project)(x.astype(self.dtype), kernel, bias)


class SeparateQkv(nn.Module):
    """The parameters of a `Dense` of 3 D features, for a kernel of attention that takes q, k and v.

    Two biases need no pass over memory and no rounding. That of the keys adds the same to all
    logits of a query, so the softmax loses it: it is left out, and its gradient is 0, as it is exactly.
    That of the values comes out of the attention as it went in, as weights have a sum of 1: it is
    returned, as a shift of the result.
    """

    std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BLD: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
        D = x_BLD.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(self.std), (D, 3 * D))
        bias = self.param("bias", nn.initializers.zeros, (3 * D,))
        x_BLD = x_BLD.astype(self.dtype)
        of_q, of_k, of_v = jnp.split(kernel, 3, axis=1)
        q_bias_D, _, v_bias_D = jnp.split(bias, 3)
        q_BLD = project(x_BLD, of_q, q_bias_D, rounds_once=True)
        return (q_BLD, project(x_BLD, of_k), project(x_BLD, of_v)), v_bias_D


class QueriesOfSome(nn.Module):
    """The parameters of a `Dense` of 3 D features: queries of some positions, keys and values of all."""

    std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, some_BD: jax.Array, all_BLD: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        D = all_BLD.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(self.std), (D, 3 * D))
        bias = self.param("bias", nn.initializers.zeros, (3 * D,))
        of_q, of_k, of_v = jnp.split(kernel, 3, axis=1)
        q_bias_D, k_bias_D, v_bias_D = jnp.split(bias, 3)
        some_BD, all_BLD = some_BD.astype(self.dtype), all_BLD.astype(self.dtype)
        return (
            project(some_BD, of_q, q_bias_D),
            project(all_BLD, of_k, k_bias_D),
            project(all_BLD, of_v, v_bias_D),
        )

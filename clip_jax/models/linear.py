"""The linear layer of both towers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.numerics import project


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
      parts: so many equal parts of the result come as arrays of their own, each from a product.
    """

    features: int
    std: float
    dtype: jnp.dtype
    use_bias: bool = True
    parts: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.std), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        if self.parts == 1:
            return project(x, kernel, bias)
        kernels = jnp.split(kernel, self.parts, axis=1)
        biases = jnp.split(bias, self.parts) if self.use_bias else [None] * self.parts
        return tuple(project(x, *part) for part in zip(kernels, biases, strict=True))

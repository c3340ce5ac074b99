"""The linear layer of both towers."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.numerics import project


class Dense(nn.Module):
    """x (..., inputs) times a kernel (inputs, features), plus a bias: (..., features).

    Heads have no axis of their own in a kernel or a bias: copies between layouts would cost more
    than they explain.

    Attributes:
      features: numbers of the result.
      std: of the kernel's normal initialisation.
      dtype: of the factors and of the result; parameters are float32.
    """

    features: int
    std: float
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.std), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return project(x.astype(self.dtype), kernel, bias)

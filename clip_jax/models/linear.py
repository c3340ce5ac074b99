"""The linear layer of both towers."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.numerics import project


class Dense(nn.Module):
    """x (..., inputs) times a kernel, plus a bias: (..., *features).

    Attributes:
      features: numbers of the result, in one axis or several.
      std: of the kernel's normal initialisation.
      dtype: of the factors and of the result; parameters are float32.
      axes: last axes of x that are summed over.
    """

    features: int | tuple[int, ...]
    std: float
    dtype: jnp.dtype
    axes: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = (self.features,) if isinstance(self.features, int) else self.features
        inputs = x.shape[x.ndim - self.axes :]
        kernel = self.param("kernel", nn.initializers.normal(self.std), (*inputs, *features))
        bias = self.param("bias", nn.initializers.zeros, features) if self.use_bias else None
        return project(x.astype(self.dtype), kernel, bias, axes=self.axes)

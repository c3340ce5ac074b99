"""The matrix product of both towers: 16-bit factors, and sums in float32 forward and backward."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clip_jax.varying import vary_alike


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """float32 means float32 on every backend; TPUs and GPUs would else round the factors."""
    return None if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST


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


def project(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, axes: int = 1
) -> jax.Array:
    """The product of `Dense`, in x's type.

    Sums, the bias and the kernel's gradient are float32, also where devices add up their shares of
    it: differentiated by JAX's own rules, a kernel that was cast to bfloat16 gets its gradient,
    and the sum over a whole pod, in bfloat16. The other reason for rules of our own is speed: a
    product of 16-bit factors is the fast one, and those rules would pair a float32 gradient with
    them.
    """
    if bias is None:
        x, kernel = vary_alike(x, kernel)
    else:
        x, kernel, bias = vary_alike(x, kernel, bias)
    # The name lets a policy of rematerialisation keep the result in its 16 bits.
    return checkpoint_name(_project(x, kernel, bias, axes), "dot")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _project(x, kernel, bias, axes: int):
    y = _dot(x, kernel.astype(x.dtype), _last(x, axes), tuple(range(axes)))
    return (y if bias is None else y + bias).astype(x.dtype)


def _forward(x, kernel, bias, axes: int):
    # The kernel is cast anew in the backward pass, so that no copy of it is kept.
    return _project(x, kernel, bias, axes), (x, kernel, bias)


def _backward(axes: int, saved, to_y):
    x, kernel, bias = saved
    outputs = kernel.ndim - axes
    rows = tuple(range(x.ndim - axes))
    to_x = _dot(to_y, kernel.astype(x.dtype), _last(to_y, outputs), tuple(range(axes, kernel.ndim)))
    to_kernel = _dot(x, to_y, rows, rows)
    to_bias = None if bias is None else to_y.astype(bias.dtype).sum(axis=rows)
    return to_x.astype(x.dtype), to_kernel.astype(kernel.dtype), to_bias


_project.defvjp(_forward, _backward)


def _dot(a: jax.Array, b: jax.Array, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> jax.Array:
    """Sum over some axes of each, in float32 at least."""
    return jax.lax.dot_general(
        a,
        b,
        dimension_numbers=((of_a, of_b), ((), ())),
        precision=precision_of(a.dtype),
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def _last(x: jax.Array, axes: int) -> tuple[int, ...]:
    return tuple(range(x.ndim - axes, x.ndim))

"""Matrix products with float32 sums, their precision and types, and the mesh axes that arrays vary over."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.hardware import target_device


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The mesh axes along which the devices have different values of x, inside `jax.shard_map`."""
    return jax.typeof(x).manual_axis_type.varying


def pvary_like(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays, marked as varying over every axis that one of them varies over.

    JAX sums the gradient of what was marked over the axes of the mark. So a gradient formula
    that meets marked arrays alone needs no sum over devices: each gives its share.
    """
    axes = frozenset().union(*map(varying_axes, arrays))
    return tuple(
        jax.lax.pcast(x, tuple(sorted(axes - varying_axes(x))), to="varying")
        if axes - varying_axes(x)
        else x
        for x in arrays
    )


def explicit_mesh(tree: Any) -> jax.sharding.AbstractMesh | None:
    """The mesh of arrays that are sharded over axes of type Explicit, `jax.make_mesh`'s default."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
            if AxisType.Explicit in mesh.axis_types:
                return mesh
    return None


def on_auto_axes(fn: Callable, out_specs: Any, *args):
    """`fn(*args)`, in which the compiler finds the shardings, also where axes are Explicit.

    Args:
      fn: a function of arrays.
      out_specs: `PartitionSpec`s of its results, for axes of type Explicit.
      *args: arrays, or trees of them.
    """
    mesh = explicit_mesh(args)
    if mesh is None:
        return fn(*args)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), out_specs, is_leaf=lambda x: isinstance(x, P)
    )
    return jax.sharding.auto_axes(fn, out_sharding=shardings)(*args)


def first_dim_axes(x: jax.Array) -> Any:
    """The mesh axes of type Explicit over which the first dimension is split, for a `PartitionSpec`."""
    spec = jax.typeof(x).sharding.spec if isinstance(x, jax.Array) else ()
    return spec[0] if len(spec) else None


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """What sums are kept in: float32, or float64 where the embeddings are float64."""
    return jnp.promote_types(dtype, jnp.float32)


def promote(*z: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in the one type in which they are multiplied: bfloat16, float32 or float64."""
    dtype = jnp.result_type(*z)
    # float16 has too narrow a range for the small gradients of a large batch.
    dtype = dtype if dtype == jnp.bfloat16 else accumulator(dtype)
    return tuple(a.astype(dtype) for a in z)


def like_rows(v_D: jax.Array, x: jax.Array) -> jax.Array:
    """A vector with as many axes as x, to be combined with each of x's rows."""
    return v_D.reshape((1,) * (x.ndim - 1) + v_D.shape)


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """float32 means float32 on every backend; TPUs and GPUs would else round the factors."""
    return None if dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST


def matmul(a: jax.Array, b: jax.Array, *, contract: tuple[int, int]) -> jax.Array:
    """Sum over one axis of each, accumulated in at least float32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype.itemsize >= 4 else None
    return jax.lax.dot_general(
        a,
        b,
        dimension_numbers=(((contract[0],), (contract[1],)), ((), ())),
        precision=exact,
        preferred_element_type=accumulator(a.dtype),
    )


def project(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, rounds_once: bool = False
) -> jax.Array:
    """The product of `Dense`: x (..., inputs) times a kernel (inputs, outputs), in x's type.

    Sums, the bias and the kernel's gradient are float32, also where devices add up their shares of
    it: differentiated by JAX's own rules, a kernel that was cast to bfloat16 gets its gradient,
    and the sum over a whole pod, in bfloat16. The other reason for rules of our own is speed: a
    product of 16-bit factors is the fast one, and those rules would pair a float32 gradient with
    them.

    On a GPU the sums are rounded before the bias is added, as its libraries write them to memory:
    in float32 they would be twice the traffic there. A TPU adds the bias to sums that it still has.
    `rounds_once` keeps them in float32 until then, for results that are written in 16 bits at once;
    `project_apart` leaves the bias, and the second rounding, to the caller.
    """
    if bias is None:
        x, kernel = pvary_like(x, kernel)
    else:
        x, kernel, bias = pvary_like(x, kernel, bias)
    # The name lets a policy of rematerialisation keep the result in its 16 bits.
    return checkpoint_name(_project(x, kernel, bias, rounds_once), "dot")


def project_apart(
    x: jax.Array, kernel: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """As `project`, for a caller that adds the bias by `add_bias` in the kernel that comes next.

    Returns:
      The product, and the bias where it is still to be added: None where it was.
    """
    if _rounds_sums(x.dtype):
        return project(x, kernel), bias
    return project(x, kernel, bias), None


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The sum of what `project_apart` returned: in float32 and not rounded where there is a bias."""
    return y if bias is None else _add_bias(*pvary_like(y, bias))


@jax.custom_vjp
def _add_bias(y, bias):
    return y.astype(bias.dtype) + like_rows(bias, y)


def _add_bias_backward(like_y, dy):
    # Both gradients are made of the same 16 bits: the sum over rows is a kernel of its own.
    dy = dy.astype(like_y.dtype)
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    return dy, dy.astype(wide).sum(axis=tuple(range(dy.ndim - 1)))


_add_bias.defvjp(lambda y, bias: (_add_bias(y, bias), jnp.zeros((), y.dtype)), _add_bias_backward)


def _rounds_sums(dtype: jnp.dtype) -> bool:
    """Whether a product's sums, which are float32, are written in fewer bits."""
    return target_device().platform == "gpu" and dtype.itemsize < 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _project(x, kernel, bias, rounds_once: bool):
    stored = x.dtype if _rounds_sums(x.dtype) and not rounds_once else None
    # Parameters are stored in 16 bits where nothing is trained: see `search.model`.
    factor = kernel.dtype if kernel.dtype == jnp.bfloat16 else x.dtype
    y = _dot(x.astype(factor), kernel.astype(factor), (x.ndim - 1,), (0,), stored=stored)
    return (y if bias is None else y + like_rows(bias, y)).astype(x.dtype)


def _forward(x, kernel, bias, rounds_once: bool):
    # The kernel is cast again in the backward pass, so that no copy of it is kept.
    return _project(x, kernel, bias, rounds_once), (x, kernel, bias)


def _backward(rounds_once: bool, saved, dy):
    x, kernel, bias = saved
    rows = tuple(range(x.ndim - 1))
    dx = _dot(dy, kernel.astype(x.dtype), (dy.ndim - 1,), (1,))
    d_kernel = _dot(x, dy, rows, rows)
    d_bias = None if bias is None else dy.astype(bias.dtype).sum(axis=rows)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype), d_bias


_project.defvjp(_forward, _backward)


def _dot(
    a: jax.Array,
    b: jax.Array,
    of_a: tuple[int, ...],
    of_b: tuple[int, ...],
    *,
    stored: jnp.dtype | None = None,
) -> jax.Array:
    """Sum over some axes of each, in float32 at least; `stored` is the type of the result then."""
    return jax.lax.dot_general(
        a,
        b,
        dimension_numbers=((of_a, of_b), ((), ())),
        precision=precision_of(a.dtype),
        preferred_element_type=stored or jnp.promote_types(a.dtype, jnp.float32),
    )

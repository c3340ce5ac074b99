"""Similarities a tile of rows at a time: memory grows with batch x tile, not with batch squared."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# For some rows (images) and some columns (texts) of the similarity matrix, given as trees of
# arrays whose first axis counts them: what there is to know of each row, and of each column, and
# what to keep for the next sweep, which is given to that as its third argument.
Block = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


class LogSumExp(NamedTuple):
    """log(sum(exp(x))) in the making: exp(max) * sum, which no x makes overflow or vanish."""

    max: jax.Array
    sum: jax.Array

    @classmethod
    def of(cls, x_RB: jax.Array, dim: int) -> "LogSumExp":
        largest = x_RB.max(axis=dim, keepdims=True)
        return cls(largest.squeeze(dim), jnp.exp(x_RB - largest).sum(axis=dim))

    def minus(self, x_B: jax.Array) -> jax.Array:
        """The logarithm less x, in an order that keeps the digits of a difference near 0."""
        return jnp.log(self.sum) + (self.max - x_B)

    def softmax(self, x_RB: jax.Array, dim: int) -> jax.Array:
        """exp(x - logarithm): the softmax of which this is the denominator."""
        largest, total = (jnp.expand_dims(part, dim) for part in self)
        return jnp.exp(x_RB - largest) * (1 / total)


def merge(one: Any, other: Any) -> Any:
    """Two trees over different parts of the matrix as one: sums add, log-sum-exps combine."""

    def combine(a, b):
        if not isinstance(a, LogSumExp):
            return a + b
        largest = jnp.maximum(a.max, b.max)
        total = a.sum * jnp.exp(a.max - largest) + b.sum * jnp.exp(b.max - largest)
        return LogSumExp(largest, total)

    return jax.tree.map(combine, one, other, is_leaf=is_log_sum_exp)


def is_log_sum_exp(part: Any) -> bool:
    return isinstance(part, LogSumExp)


def sweep_tiles(
    block: Block, rows: Any, columns: Any, tile: int | None, kept: Any = None
) -> tuple[Any, Any, Any]:
    """`block` over all rows, `tile` of them at a time, of which nothing is kept (None: all at once)."""
    count = jax.tree.leaves(rows)[0].shape[0]
    if tile is None or tile >= count:
        return block(rows, columns, kept)

    def of_tile(rows):
        return block(rows, columns, None)[:2]

    # The first tile takes what does not divide, and starts what the others add to.
    first = count % tile or tile
    for_first, for_columns = of_tile(jax.tree.map(lambda a: a[:first], rows))
    tiles = jax.tree.map(lambda a: a[first:].reshape(-1, tile, *a.shape[1:]), rows)

    def step(for_columns, rows_of_tile):
        for_rows, more = of_tile(rows_of_tile)
        return merge(for_columns, more), for_rows

    for_columns, for_others = jax.lax.scan(step, for_columns, tiles)
    for_rows = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b.reshape(-1, *b.shape[2:])]), for_first, for_others
    )
    return for_rows, for_columns, None


def similarity(z_image_IE: jax.Array, z_text_TE: jax.Array) -> jax.Array:
    """Cosine similarity of every image with every text.

    Args:
      z_image_IE: embeddings of images (images, embedding), each of length 1.
      z_text_TE: embeddings of texts (texts, embedding), each of length 1.

    Returns:
      (images, texts) dot products, -1 to 1, accumulated in float32. Embeddings in float32 are
      multiplied in full float32 on every backend, those in bfloat16 by its fast products.

    Raises:
      ValueError: when the embeddings are not of rank two or not of one width.
    """
    for name, z in (("z_image_IE", z_image_IE), ("z_text_TE", z_text_TE)):
        if z.ndim != 2:
            raise ValueError(f"{name} has shape {z.shape}; (count, embedding) is needed")
    if z_image_IE.shape[1] != z_text_TE.shape[1]:
        raise ValueError(
            f"images have embeddings of {z_image_IE.shape[1]} numbers and texts of "
            f"{z_text_TE.shape[1]}: they come from different models"
        )
    return matmul(*alike(z_image_IE, z_text_TE), contract=(1, 1))


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


def pull_back(
    gradient_RB: jax.Array, image_RE: jax.Array, text_BE: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A gradient by the similarities of rows and columns, as one by the rows and the columns."""
    gradient_RB = gradient_RB.astype(image_RE.dtype)
    to_image_RE = matmul(gradient_RB, text_BE, contract=(1, 0))
    to_text_BE = matmul(gradient_RB, image_RE, contract=(0, 0))
    return to_image_RE, to_text_BE


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """What sums are kept in: float32, or float64 where the embeddings are float64."""
    return jnp.promote_types(dtype, jnp.float32)


def alike(*z: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in the one type in which they are multiplied: bfloat16, float32 or float64."""
    dtype = jnp.result_type(*z)
    # float16 has too narrow a range for the small gradients of a large batch.
    dtype = dtype if dtype == jnp.bfloat16 else accumulator(dtype)
    return tuple(a.astype(dtype) for a in z)

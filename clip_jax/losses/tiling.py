"""Similarities a tile at a time: memory grows with batch x tile, not with batch squared."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from clip_jax.numerics import first_dim_axes, matmul, on_auto_axes, promote, pvary_like

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

    def combine(self, other: "LogSumExp") -> "LogSumExp":
        largest = jnp.maximum(self.max, other.max)
        total = self.sum * jnp.exp(self.max - largest) + other.sum * jnp.exp(other.max - largest)
        return LogSumExp(largest, total)

    def over_devices(self, axes: tuple[str, ...]) -> "LogSumExp":
        largest = jax.lax.pmax(self.max, axes)
        return LogSumExp(largest, jax.lax.psum(self.sum * jnp.exp(self.max - largest), axes))

    def nothing(self) -> "LogSumExp":
        return LogSumExp(jnp.full_like(self.max, -jnp.inf), jnp.zeros_like(self.sum))


class Largest(NamedTuple):
    """The largest of some numbers in the making."""

    max: jax.Array

    def combine(self, other: "Largest") -> "Largest":
        return Largest(jnp.maximum(self.max, other.max))

    def over_devices(self, axes: tuple[str, ...]) -> "Largest":
        return Largest(jax.lax.pmax(self.max, axes))

    def nothing(self) -> "Largest":
        return Largest(jnp.full_like(self.max, -jnp.inf))


def merge(one: Any, other: Any) -> Any:
    """Two trees over different parts of the matrix as one: sums add, other reductions combine."""

    def combine(a, b):
        return a.combine(b) if is_reduction(a) else a + b

    return jax.tree.map(combine, one, other, is_leaf=is_reduction)


def is_reduction(part: Any) -> bool:
    """Whether it is one that does not simply add up."""
    return isinstance(part, LogSumExp | Largest)


class Transposed(NamedTuple):
    """A matrix with a row for each row or column of similarities, held as its transpose.

    What a product gives most easily; it is turned over once, when all tiles are done.
    """

    x_EB: jax.Array


def is_transposed(part: Any) -> bool:
    return isinstance(part, Transposed)


def sweep_tiles(
    block: Block,
    rows: Any,
    columns: Any,
    tile: int | None,
    kept: Any = None,
    *,
    all_rows: bool = False,
) -> tuple[Any, Any, Any]:
    """`block` over the whole matrix, in blocks that hold `tile` rows' worth of it (None: at once).

    Whole rows would do, but each visit to a column reads and writes its gradient: blocks are as
    nearly square as their size allows. With `all_rows` each block has some columns of every row
    instead, so that rows that the compiler has split over devices stay split. Of tiles nothing is
    kept.
    """
    height, width = _count(rows), _count(columns)
    if tile is None or tile >= height:
        *found, kept = block(rows, columns, kept)
        return *(_joined(_stacked(part)) for part in found), kept
    tall = height if all_rows else _divide(height, math.isqrt(tile * width))
    wide = _divide(width, tile * width // tall)

    def of_rows(rows):
        def of_columns(columns):
            for_rows, for_columns, _ = block(rows, columns, None)
            return for_columns, for_rows

        for_columns, for_rows = _by_parts(of_columns, columns, wide)
        return for_rows, for_columns

    for_rows, for_columns = _by_parts(of_rows, rows, tall)
    return _joined(for_rows), _joined(for_columns), None


def _by_parts(of_part: Callable[[Any], tuple[Any, Any]], whole: Any, size: int) -> tuple[list, Any]:
    """`of_part` over parts of the first axis: what belongs to each, and what to all, merged.

    The first is a list: what belongs to the parts of `size`, stacked, then to a last smaller one.
    """
    count = _count(whole)
    if size >= count:
        own, for_all = of_part(whole)
        return _stacked(own), for_all
    end = count - count % size
    parts = jax.tree.map(lambda a: a[:end].reshape(-1, size, *a.shape[1:]), whole)

    def step(for_all, part):
        own, more = of_part(part)
        return merge(for_all, more), own

    one = jax.tree.map(lambda a: a[:size], whole)
    start = _nothing(jax.eval_shape(lambda part: of_part(part)[1], one), like=one)
    for_all, own = jax.lax.scan(step, start, parts)
    if end == count:
        return [own], for_all
    last, more = of_part(jax.tree.map(lambda a: a[end:], whole))
    return [own, *_stacked(last)], merge(for_all, more)


def _stacked(own: Any) -> list:
    """A stack of one."""
    return [jax.tree.map(lambda a: a[None], own)]


def _joined(stacks: list) -> Any:
    """What belongs to all parts, in a row."""

    def flat(part):
        stack = jnp.swapaxes(part.x_EB, 1, 2) if isinstance(part, Transposed) else part
        return stack.reshape(-1, *stack.shape[2:])

    found = [jax.tree.map(flat, stack, is_leaf=is_transposed) for stack in stacks]
    return found[0] if len(found) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *found)


def _nothing(shapes: Any, *, like: Any) -> Any:
    """What `merge` adds to without a change: sums of nothing, varying over a mesh as `like` does."""

    def make(shape):
        return shape.nothing() if is_reduction(shape) else jnp.zeros_like(shape)

    leaves, tree = jax.tree.flatten(jax.tree.map(make, shapes, is_leaf=is_reduction))
    return jax.tree.unflatten(tree, pvary_like(*leaves, *jax.tree.leaves(like))[: len(leaves)])


def _count(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _divide(count: int, most: int) -> int:
    """The size of parts of at most `most`: one that divides `count`, if there is any near."""
    best = max(size for size in range(1, min(most, count) + 1) if count % size == 0)
    return best if 2 * best >= most or best == count else most


def similarity(z_image_IE: jax.Array, z_text_TE: jax.Array) -> jax.Array:
    """Cosine similarity of every image with every text.

    Args:
      z_image_IE: embeddings of images (images, embedding), each of length 1.
      z_text_TE: embeddings of texts (texts, embedding), each of length 1.

    Returns:
      (images, texts) dot products, -1 to 1, accumulated in float32. Embeddings in float32 are
      multiplied in full float32 on every backend, those in bfloat16 by its fast products.

    Raises:
      ValueError: when the embeddings are not of rank two, not of one width or not floating-point numbers.
    """
    for name, z in (("z_image_IE", z_image_IE), ("z_text_TE", z_text_TE)):
        if z.ndim != 2:
            raise ValueError(f"{name} has shape {z.shape}; (count, embedding) is needed")
        check_floating(name, z)
    if z_image_IE.shape[1] != z_text_TE.shape[1]:
        raise ValueError(
            f"images have embeddings of {z_image_IE.shape[1]} numbers and texts of "
            f"{z_text_TE.shape[1]}: they come from different models"
        )
    rows, columns = first_dim_axes(z_image_IE), first_dim_axes(z_text_TE)
    # An axis splits one dimension of the result: where both embeddings have it, the images keep it.
    spec = P(rows, columns if rows is None else None)
    return on_auto_axes(_similarity, spec, z_image_IE, z_text_TE)


def _similarity(z_image_IE: jax.Array, z_text_TE: jax.Array) -> jax.Array:
    return matmul(*promote(z_image_IE, z_text_TE), contract=(1, 1))


def check_floating(name: str, z: jax.Array):
    """Refuse embeddings that are integers or booleans, such as quantized ones, of which no product is a cosine."""
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(f"{name} has type {z.dtype}: embeddings are floating-point numbers")


def similarity_vjp(
    gradient_RB: jax.Array, image_RE: jax.Array, text_BE: jax.Array
) -> tuple[jax.Array, Transposed]:
    """A gradient by the similarities of rows and columns, as one by the rows and the columns."""
    gradient_RB = gradient_RB.astype(image_RE.dtype)
    d_image_RE = matmul(gradient_RB, text_BE, contract=(1, 0))
    d_text_EB = matmul(image_RE, gradient_RB, contract=(0, 0))
    return d_image_RE, Transposed(d_text_EB)

"""An optimizer's update: computed once or twice, its norm, and the state with it or without it.

Whether a step is taken is known when the update's norm is, so that the parameters and the moments cannot be
overwritten before. The update and the moments after it are then written beside those before and read
again, 76 bytes a parameter for AdamW. On one CPU, whose memory is slow, the norm is computed from what is
there, and the update a second time, where its results are put in place: 53 bytes.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

# Primitives of an update that cost more than memory. One that is not here costs time, and nothing else.
COSTLY = re.compile(
    r"= (dot_general|ragged_dot|conv_general|while|scan|sort|fft|lu|qr|householder|svd|eig|schur|"
    r"hessenberg|cholesky|triangular_solve|tridiagonal)"
)
# Squares that are added before they are written. Of 2, 4, 8 and 16 the fastest.
FOLDS = 8


def is_made_twice(update: Callable[[], Any], mesh: Mesh) -> bool:
    """Whether an update is computed once for its norm and again in place."""
    if mesh.size > 1 or not _on_cpu(mesh):
        return False
    program = jax.make_jaxpr(update)()
    # What the host is called for, and other effects, would come twice.
    is_pure = not program.effects and "_callback[" not in str(program)
    return is_pure and not COSTLY.search(str(program))


def written(tree: Any, mesh: Mesh) -> Any:
    """The same arrays; on a CPU what follows reads them from memory.

    There a norm and the optimizer share the squares of a gradient, so that XLA writes these to memory, and
    reads them twice; behind a barrier each squares what it reads.
    """
    return jax.lax.optimization_barrier(tree) if _on_cpu(mesh) else tree


def norm_of(updates: Any, *, in_passing: bool) -> jax.Array:
    """The norm of all arrays together, a scalar; `in_passing`, of updates that are written nowhere."""
    if not in_passing:
        return optax.tree.norm(updates)
    return jnp.sqrt(sum(_sum_of_squares(leaf) for leaf in jax.tree.leaves(updates)))


def _sum_of_squares(x: jax.Array) -> jax.Array:
    """The sum of x * x. XLA's CPU backend writes an eighth of the squares to memory, in place of all."""
    squares = x * x
    if x.size % FOLDS == 0:
        squares = sum(squares.reshape(FOLDS, -1))
    # Rounds to what it has already, and keeps what comes before out of the loop over the sum, which is slow.
    bits = jnp.finfo(squares.dtype)
    return jax.lax.reduce_precision(squares, bits.nexp, bits.nmant).sum()


def chosen(sound: jax.Array, after: Callable[[], Any], before: Any, *, in_place: bool) -> Any:
    """What `after` returns, or `before` if the step is not sound.

    `in_place` computes it in a branch, behind which XLA does not find the update that was computed for
    the norm; else it would keep that one in memory.
    """
    if in_place:
        return jax.lax.cond(sound, after, lambda: before)
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), after(), before)


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"

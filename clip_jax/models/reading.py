"""One position of each sequence, which a tower reads, and the last block, which is cheaper for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# One position of all sequences, or one of each (B,).
Position = int | jax.Array


def at(x_BLD: jax.Array, read: Position | None) -> jax.Array:
    """x at one position of each sequence (B, D), or all of it."""
    if read is None:
        return x_BLD
    if isinstance(read, int):
        return x_BLD[:, read]
    return jnp.take_along_axis(x_BLD, read[:, None, None], axis=1)[:, 0]


def position(read: Position, B: int, L: int) -> Position:
    """`read` as an `int` from 0 on or an array (B,); counted from the end where it is negative.

    Raises:
      ValueError: one position of all sequences that they do not have.
    """
    if isinstance(read, int | np.integer) and isinstance(L, int):
        if not -L <= read < L:
            raise ValueError(f"position {read} cannot be read of {L}: give one from 0 to {L - 1}")
        return int(read) % L
    # One of each, or a symbol, as lengths of exported programs may be.
    read_B = jnp.broadcast_to(jnp.asarray(read, jnp.int32), (B,))
    return jnp.where(read_B < 0, read_B + L, read_B)


@jax.custom_vjp
def leave_last(stacks: Any) -> tuple[Any, Any]:
    """Stacked parameters of all blocks but the last one, and of that.

    Their gradients are put one after the other. JAX's own rule pads both and adds them: two more passes.
    """
    first = jax.tree.map(lambda stack: stack[:-1], stacks)
    return first, jax.tree.map(lambda stack: stack[-1], stacks)


def _put_together(_, gradients: tuple[Any, Any]) -> tuple[Any]:
    return (jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]), *gradients),)


leave_last.defvjp(lambda stacks: (leave_last(stacks), None), _put_together)

"""A stack of transformer blocks: how its parameters are split, how many there are, and its FLOPs."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

# Rows of `Tower.sharding_rows`: every matrix along the width of the residual stream, so that one
# divisor serves all. Blocks have their depth as first axis.
SHARDING_ROWS = (
    ("blocks/attention/qkv/kernel", 1),
    ("blocks/attention/out/kernel", -1),
    ("blocks/mlp/up/kernel", 1),
    ("blocks/mlp/down/kernel", -1),
)


class Blocks(Protocol):
    """A tower's settings that its blocks are made from."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    activation: str
    norm_epsilon: float


def block_parameters(tower: Blocks) -> int:
    """Parameters of one block."""
    D, F = tower.width, tower.mlp_width
    norms, attention, mlp = 4 * D, 4 * (D + 1) * D, (D + 1) * F + (F + 1) * D
    return norms + attention + mlp


def block_flops(tower: Blocks, L: int) -> float:
    """Floating-point operations of one block's matrix products, for L tokens."""
    D, F = tower.width, tower.mlp_width
    return 2 * (4 * L * D * D + 2 * L * L * D + 2 * L * D * F)


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

"""A stack of transformer blocks: how its parameters are split, how many there are, and its FLOPs."""

from typing import Protocol

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

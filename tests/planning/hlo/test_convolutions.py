"""Products that TPU programs write as convolutions are counted as products."""

import pytest

from clip_jax.planning.hlo.convolutions import convolution_flops, dot_flops
from clip_jax.planning.hlo.text import Module


def flops(left: str, right: str, out: str, operation: str) -> float:
    module = Module(
        f"ENTRY %main (a: {left}, b: {right}) -> {out} {{\n"
        f"  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n"
        f"  ROOT %c = {out} {operation}\n}}\n"
    )
    instruction = module.entry.instructions[-1]
    count = dot_flops if instruction.opcode == "dot" else convolution_flops
    return count(instruction, module.entry)


def test_a_batched_dot_counts_every_product_once():
    found = flops(
        "f32[3,8,16]", "f32[3,16,4]", "f32[3,8,4]",
        "dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
        "rhs_contracting_dims={1}",
    )  # fmt: skip
    assert found == 2 * 3 * 8 * 4 * 16


def test_a_matrix_product_as_a_convolution_without_a_window():
    assert flops("bf16[8,16]", "bf16[16,4]", "bf16[8,4]",
                 "convolution(%a, %b), dim_labels=bf_io->bf") == 2 * 8 * 4 * 16  # fmt: skip


def test_padding_is_not_counted():
    """3x3 over 5x5 with one row of padding: the corners miss five of nine products."""
    found = flops(
        "f32[1,5,5,2]", "f32[3,3,2,4]", "f32[1,5,5,4]",
        "convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
    )  # fmt: skip
    assert found == 2 * 2 * 4 * (3 * 5 - 2) ** 2


def test_a_batch_axis_as_a_dilated_window_counts_no_holes():
    """How a product batched over 6 becomes a convolution: one valid product a place."""
    found = flops(
        "f32[8,16,6]", "f32[6,16,4]", "f32[8,4,6]",
        "convolution(%a, %b), window={size=6 stride=5 pad=5_5 lhs_dilate=6 rhs_reversal=1}, "
        "dim_labels=bf0_0io->bf0",
    )  # fmt: skip
    assert found == pytest.approx(2 * 8 * 4 * 16 * 6)

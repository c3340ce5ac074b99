"""Products that TPU programs write as convolutions are counted as products."""

import pytest

from clip_jax.planning.hlo.convolutions import Product, product_of
from clip_jax.planning.hlo.text import Module


def product(left: str, right: str, out: str, operation: str) -> Product:
    module = Module(
        f"ENTRY %main (a: {left}, b: {right}) -> {out} {{\n"
        f"  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n"
        f"  ROOT %c = {out} {operation}\n}}\n"
    )
    return product_of(module.entry.instructions[-1], module.entry)


def flops(*parts: str) -> float:
    return product(*parts).flops


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


@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        # q k^T of 3 heads in 16 samples: 48 products.
        (("bf16[16,3,197,64]", "bf16[16,3,197,64]", "f32[16,3,197,197]",
          "convolution(%a, %b), window={size=16x3 stride=15x2 lhs_dilate=16x3}, "
          "dim_labels=01bf_01oi->01bf"), (197, 197, 64)),
        # To q, k and v of 12 heads: axes of the kernel alone are columns.
        (("bf16[128,197,768,1,1]", "bf16[3,768,64,12,1]", "f32[128,197,3,12,64]",
          "convolution(%a, %b), window={size=1x3x12 pad=0_0x2_2x11_11 rhs_reversal=0x1x1}, "
          "dim_labels=b0f12_1io20->b012f"), (128 * 197, 3 * 12 * 64, 768)),
        # And back: axes that are summed over are depth.
        (("bf16[128,197,3,12,64]", "bf16[768,3,12,64,1]", "f32[128,197,768,1,1]",
          "convolution(%a, %b), window={size=1x3x12}, "
          "dim_labels=b012f_o12i0->b0f12"), (128 * 197, 768, 3 * 12 * 64)),
        # The gradient of a kernel: summed over samples and places.
        (("bf16[128,768,197]", "bf16[128,197,3072]", "f32[768,3072,1]",
          "convolution(%a, %b), window={size=197}, dim_labels=fb0_i0o->bf0"),
         (768, 3072, 128 * 197)),
        # Patches of 16 x 16 pixels: the window is depth, its places are rows.
        (("bf16[8,224,224,3]", "bf16[16,16,3,768]", "bf16[8,14,14,768]",
          "convolution(%a, %b), window={size=16x16 stride=16x16}, dim_labels=b01f_01io->b01f"),
         (8 * 14 * 14, 768, 16 * 16 * 3)),
        (("f32[3,8,16]", "f32[3,16,4]", "f32[3,8,4]",
          "dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
          "rhs_contracting_dims={1}"), (8, 4, 16)),
    ],
    ids=["batched", "columns", "summed", "gradient", "patches", "dot"],
)  # fmt: skip
def test_a_product_has_rows_columns_and_depth(parts, shape):
    found = product(*parts)
    assert (found.rows, found.columns, found.depth) == shape


def test_a_product_fills_the_matrix_unit_that_it_does_not_need():
    """197 x 64 by 64 x 197: 64 go up to 128, and 197 up to 256 one way and up to 200 the other."""
    found = Product(2.0 * 197 * 197 * 64, 197, 197, 64)
    assert found.padded_flops(128) == pytest.approx(2 * 200 * 256 * 128)
    assert found.padded_flops(256) == pytest.approx(2 * 200 * 256 * 256)


def test_a_product_of_whole_units_is_not_padded():
    found = Product(2.0 * 1024 * 768 * 3072, 1024, 768, 3072)
    assert found.padded_flops(128) == found.flops

"""A program for GPUs is read after it is split and before a CPU's compiler changes it."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax.planning.hlo.partitioned import compile_for_text, read_partitioned, update_work


@pytest.fixture(scope="module")
def text():
    """Attention of 2 heads over 16 places, then a projection in bfloat16, summed over 8 devices."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    whole = jax.NamedSharding(mesh, jax.P())

    def loss(w, x_BLNK):
        logits = jnp.einsum("BLNK,BMNK->BNLM", x_BLNK, x_BLNK)
        y = jnp.einsum("BNLM,BMNK->BLNK", logits, x_BLNK)
        return (y.reshape(-1, 8) @ w).sum()

    x = jax.ShapeDtypeStruct((8, 16, 2, 4), jnp.bfloat16, sharding=rows)
    w = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16, sharding=whole)
    return compile_for_text(jax.jit(jax.grad(loss), out_shardings=whole).lower(w, x))


def test_products_keep_their_types_and_gradients_are_summed(text):
    program = read_partitioned(text, fused_attention=False)
    assert program.flops > 0
    assert {c.dtype for c in program.collectives if c.kind == "all-reduce"} == {"bf16"}


def test_a_fused_kernel_moves_less(text):
    plain, fused = (read_partitioned(text, fused_attention=f).bytes for f in (False, True))
    # The logits, 2 heads x 16 x 16 in bfloat16, leave one product and enter another; each time
    # they are written once and read once.
    assert plain - fused == 2 * 2 * (2 * 2 * 16 * 16)


def test_an_update_reads_gradients_and_moves_the_state_both_ways():
    assert update_work(100, 200).bytes == 700


def test_a_sum_in_float32_that_is_rounded_at_once_is_stored_rounded():
    text = """ENTRY %main (x: bf16[8,16], w: bf16[16,4]) -> bf16[8,4] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %sum = f32[8,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %out = bf16[8,4]{1,0} convert(%sum)
}
"""
    assert read_partitioned(text, fused_attention=False).bytes == 2 * 2 * (8 * 16 + 16 * 4 + 8 * 4)

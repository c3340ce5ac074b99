"""Exact attention of a short sequence as one Pallas TPU kernel: no logits in memory, forward or backward."""

# X: queries, keys and values side by side, 3 D. W: lanes of a window, a multiple of 128.
# R: some queries.

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from clip_jax.hardware import target_device

LANES = 128  # of a TPU's vector registers; arrays are read from multiples of it
MASKED = -1e30  # a logit without weight; its difference to another one is finite
QUERIES, MOST_QUERIES = 256, 320  # at once in a longer sequence; at once in one that is whole
MIB = 2**20
SHORTEST, LONGEST = 16, 1024  # keys: all logits of some queries are held at once


class Window(NamedTuple):
    """Where a head lies: its lanes, and the aligned ones around them. Relative to its group."""

    start: int
    stop: int
    first: int  # lane of the window that is the head's
    last: int  # and the one after its last


def windows(head_width: int) -> list[Window]:
    """The heads of a group: two of width 64 share 128 lanes, sixteen of width 72 share 1,152."""
    found = []
    for first in range(0, math.lcm(head_width, LANES), head_width):
        start, stop = first // LANES * LANES, -(-(first + head_width) // LANES) * LANES
        found.append(Window(start, stop, first - start, first - start + head_width))
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def short_attention(qkv_BLX: jax.Array, heads: int, causal: bool, interpret: bool) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v of every head, (B, L, D), from q, k and v side by side (B, L, 3 D).

    A program holds a whole sequence in VMEM. Heads need no axis of their own: one is selected by its
    neighbours in the same registers by a mask. The backward pass computes the softmax again from q
    and k, so that nothing but `qkv_BLX` is kept for it. The softmax is float32; factors of products
    have qkv's type.

    Args:
      heads: D is a multiple of 128 and of this.
      causal: position l sees only positions up to l.
      interpret: run on any backend, as a test does.
    """
    B, L, X = qkv_BLX.shape
    D = X // 3
    part = lambda i: pl.BlockSpec((1, L, D), lambda b: (b, 0, i))  # noqa: E731
    cost = pl.CostEstimate(
        flops=4 * B * L * L * D,
        transcendentals=B * heads * L * L,
        bytes_accessed=4 * B * L * D * qkv_BLX.dtype.itemsize,
    )
    return _call(
        functools.partial(_forward_kernel, head_width=D // heads, causal=causal),
        (qkv_BLX, qkv_BLX, qkv_BLX),
        in_specs=[part(0), part(1), part(2)],
        out_spec=part(0),
        out_width=D,
        cost=cost,
        interpret=interpret,
        name="short_attention",
    )


def _forward(qkv_BLX, heads: int, causal: bool, interpret: bool):
    return short_attention(qkv_BLX, heads, causal, interpret), qkv_BLX


def _backward(heads: int, causal: bool, interpret: bool, qkv_BLX, d_out_BLD):
    B, L, X = qkv_BLX.shape
    D = X // 3
    part = lambda i: pl.BlockSpec((1, L, D), lambda b: (b, 0, i))  # noqa: E731
    cost = pl.CostEstimate(
        flops=10 * B * L * L * D,
        transcendentals=B * heads * L * L,
        bytes_accessed=7 * B * L * D * qkv_BLX.dtype.itemsize,
    )
    d_qkv_BLX = _call(
        functools.partial(_backward_kernel, head_width=D // heads, causal=causal),
        (qkv_BLX, qkv_BLX, qkv_BLX, d_out_BLD),
        in_specs=[part(0), part(1), part(2), part(0)],
        out_spec=pl.BlockSpec((1, L, X), lambda b: (b, 0, 0)),
        out_width=X,
        cost=cost,
        interpret=interpret,
        name="short_attention_backward",
    )
    return (d_qkv_BLX,)


short_attention.defvjp(_forward, _backward)


def _call(kernel, arrays, *, in_specs, out_spec, out_width, cost, interpret, name) -> jax.Array:
    B, L, _ = arrays[0].shape
    dtype = arrays[0].dtype
    out_shape = jax.ShapeDtypeStruct(
        (B, L, out_width), dtype, manual_axis_type=jax.typeof(arrays[0]).manual_axis_type
    )
    return pl.pallas_call(
        kernel,
        grid=(B,),
        in_specs=in_specs,
        out_specs=out_spec,
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=vmem_limit()
        ),
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )(*arrays)


def vmem_limit() -> int:
    """Bytes of a core's fast memory that the kernel may use, of 16 MiB up to v4 and 64 or more since."""
    small = target_device().device_kind.startswith(("TPU v2", "TPU v3", "TPU v4"))
    return (12 if small else 48) * MIB


def vmem_bytes(L: int, D: int, head_width: int) -> int:
    """What the backward kernel needs of a core's fast memory, at most."""
    rows = -(-L // 16) * 16
    blocks = 2 * 7 * rows * D * 2  # twice, as the next ones are fetched meanwhile
    logits = 8 * rows * MOST_QUERIES * 4
    return blocks + logits + 4 * rows * math.lcm(head_width, LANES) * 4 + 4 * MIB


def obstacle(dtype: Any, L: int, D: int, heads: int) -> str:
    """What the kernel lacks for attention of this type and shape, or nothing."""
    head_width = D // heads
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"dtype=bfloat16, not {jnp.dtype(dtype)}"
    if D % LANES or head_width % 8:
        return (
            f"a width that is a multiple of {LANES} and heads of a multiple of 8, "
            f"not a width of {D} and heads of {head_width}"
        )
    if L < SHORTEST:
        return f"a sequence of at least {SHORTEST}, not {L}"
    if L > LONGEST or vmem_bytes(L, D, head_width) > vmem_limit():
        return f"a shorter sequence or a narrower tower than {L} x {D}"
    return ""


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, *, head_width: int, causal: bool):
    def group(first_lane):
        def some_queries(first, rows: int, _):
            out = {}
            for window in windows(head_width):
                lanes = pl.ds(first_lane + window.start, window.stop - window.start)
                q_RW = _own(q_ref[0, pl.ds(first, rows), lanes], window)
                s_RM = _dot(q_RW, k_ref[0, :, lanes], 1, 1)
                if causal:
                    s_RM = _masked(s_RM, first, query_dim=0)
                p_RM = jnp.exp2((s_RM - s_RM.max(axis=1, keepdims=True)) * _exponent(head_width))
                out_RW = _dot(p_RM.astype(v_ref.dtype), v_ref[0, :, lanes], 1, 0)
                _put(out, window, out_RW / p_RM.sum(axis=1, keepdims=True))
            for block, x_RW in out.items():
                _store(out_ref, pl.ds(first, rows), first_lane + block * LANES, x_RW)

        _for_queries(q_ref.shape[1], some_queries)

    _for_groups(q_ref.shape[2], head_width, group)


def _backward_kernel(q_ref, k_ref, v_ref, d_out_ref, d_ref, *, head_width: int, causal: bool):
    L, D = q_ref.shape[1:]
    scale = head_width**-0.5

    def group(first_lane):
        def some_queries(first, rows: int, sums):
            dq, sums = {}, dict(enumerate(sums))
            for window in windows(head_width):
                lanes = pl.ds(first_lane + window.start, window.stop - window.start)
                k_MW, v_MW = k_ref[0, :, lanes], v_ref[0, :, lanes]
                q_RW = _own(q_ref[0, pl.ds(first, rows), lanes], window)
                d_out_RW = _own(d_out_ref[0, pl.ds(first, rows), lanes], window)
                # Transposed, sums over keys are sums of registers, and two of the three products
                # that follow need no transposition.
                s_MR = _dot(k_MW, q_RW, 1, 1)
                if causal:
                    s_MR = _masked(s_MR, first, query_dim=1)
                p_MR = jnp.exp2((s_MR - s_MR.max(axis=0, keepdims=True)) * _exponent(head_width))
                p_MR = p_MR * (1 / p_MR.sum(axis=0, keepdims=True))
                dp_MR = _dot(v_MW, d_out_RW, 1, 1)
                ds_MR = p_MR * (dp_MR - (p_MR * dp_MR).sum(axis=0, keepdims=True))
                ds_MR, p_MR = ds_MR.astype(q_RW.dtype), p_MR.astype(q_RW.dtype)
                _put(dq, window, _dot(ds_MR, k_MW, 0, 0))
                _add(sums, window, (_dot(ds_MR, q_RW, 1, 0), _dot(p_MR, d_out_RW, 1, 0)))
            for block, x_RW in dq.items():
                _store(d_ref, pl.ds(first, rows), first_lane + block * LANES, x_RW * scale)
            return tuple(sums.values())

        sums = _for_queries(L, some_queries)
        for block, (dk_MW, dv_MW) in enumerate(zip(sums[0::2], sums[1::2])):
            lane = first_lane + block * LANES
            _store(d_ref, slice(None), D + lane, dk_MW * scale)
            _store(d_ref, slice(None), 2 * D + lane, dv_MW)

    _for_groups(D, head_width, group)


def _for_groups(width: int, head_width: int, group: Callable[[jax.Array], None]):
    """Call `group` with the first lane of every group of heads."""
    lanes = math.lcm(head_width, LANES)

    def turn(g, _):
        group(pl.multiple_of(g * lanes, LANES))
        return 0

    lax.fori_loop(0, width // lanes, turn, 0)


def _for_queries(L: int, some_queries: Callable) -> tuple:
    """Call `some_queries` for all queries, or for so many at once that their logits stay few.

    It gets the position of the first one, how many they are, and what the call before returned.
    """
    whole, rest = divmod(L, QUERIES) if L > MOST_QUERIES else (0, L)
    if rest == 1:  # Mosaic cannot lower products of a single 16-bit row
        whole, others = whole - 1, (QUERIES - 16, 17)
    else:
        others = (rest,) if rest else ()
    sums, first = (), whole * QUERIES
    if whole:
        sums = some_queries(0, QUERIES, sums)
        turn = lambda i, sums: some_queries(  # noqa: E731
            pl.multiple_of(i * QUERIES, LANES), QUERIES, sums
        )
        sums = lax.fori_loop(1, whole, turn, sums) if whole > 2 else sums
        sums = some_queries(QUERIES, QUERIES, sums) if whole == 2 else sums
    for rows in others:
        sums = some_queries(first, rows, sums)
        first += rows
    return sums


def _exponent(head_width: int) -> float:
    """exp(x / sqrt(K)) is 2 to the power of x times this."""
    return head_width**-0.5 * math.log2(math.e)


def _dot(a, b, of_a: int, of_b: int):
    """Sum over one axis of each, in float32."""
    return lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=jnp.float32)


def _masked(s, first, *, query_dim: int):
    """Logits without those of keys that come after their query."""
    query = first + lax.broadcasted_iota(jnp.int32, s.shape, query_dim)
    key = lax.broadcasted_iota(jnp.int32, s.shape, 1 - query_dim)
    return jnp.where(key <= query, s, MASKED)


def _is_own(shape: tuple[int, int], window: Window, start: int = 0):
    """Which lanes are the head's, of an array that begins at this lane of the window."""
    lane = start + lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= window.first) & (lane < window.last)


def _own(x_RW, window: Window):
    """Zeros in the lanes of other heads."""
    if window.last - window.first == x_RW.shape[1]:
        return x_RW
    return jnp.where(_is_own(x_RW.shape, window), x_RW, jnp.zeros_like(x_RW))


def _put(blocks: dict, window: Window, x_RW):
    """Write a head's lanes: the first head of a block writes all of them, others follow."""
    for start in range(0, x_RW.shape[1], LANES):
        block, part = (window.start + start) // LANES, x_RW[:, start : start + LANES]
        if block in blocks:
            part = jnp.where(_is_own(part.shape, window, start), part, blocks[block])
        blocks[block] = part


def _add(sums: dict, window: Window, both: tuple):
    """Add to the sums of the window's blocks what is zero in other heads' lanes."""
    for start in range(0, both[0].shape[1], LANES):
        block = (window.start + start) // LANES
        for i, x_MW in enumerate(both):
            part, key = x_MW[:, start : start + LANES], 2 * block + i
            sums[key] = sums[key] + part if key in sums else part


def _store(ref, rows, lane, x_RW):
    ref[0, rows, pl.ds(pl.multiple_of(lane, LANES), LANES)] = x_RW.astype(ref.dtype)

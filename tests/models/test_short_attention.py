"""The TPU's attention kernel, interpreted on the CPU, against attention in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.models import attention as attention_lib
from clip_jax.models import short_attention as short_attention_lib
from clip_jax.models.attention import kernel_attention, kind_for_blocks, plain_attention
from clip_jax.models.layers import Transformer
from clip_jax.models.short_attention import obstacle, short_attention, windows

WIDTHS = {64: 2, 72: 16, 80: 8, 88: 16, 96: 4, 104: 16, 128: 1}  # heads of one group


def plain(qkv_BLX, heads: int, causal: bool):
    B, L, X = qkv_BLX.shape
    q, k, v = jnp.moveaxis(qkv_BLX.reshape(B, L, 3, heads, X // 3 // heads), 2, 0)
    return plain_attention(q, k, v, causal=causal).reshape(B, L, X // 3)


def arrays(L: int, heads: int, head_width: int, *, batch: int = 1, scale: float = 1.0):
    rng = np.random.default_rng(L + head_width)
    D = heads * head_width
    qkv_BLX, d_out_BLD = rng.normal(size=(batch, L, 3 * D)), rng.normal(size=(batch, L, D))
    qkv_BLX[..., : 2 * D] *= scale
    return jnp.asarray(qkv_BLX, jnp.bfloat16), jnp.asarray(d_out_BLD, jnp.bfloat16)


def value_and_gradient(form, *given):
    def both(qkv_BLX, d_out_BLD):
        out_BLD, vjp = jax.vjp(form, qkv_BLX)
        return out_BLD, vjp(d_out_BLD)[0]

    return jax.device_get(jax.jit(both)(*given))


def in_float64(heads: int, causal: bool, qkv_BLX, d_out_BLD):
    """The value and the gradient, by their formulas."""
    split = lambda x: np.asarray(x, np.float64).reshape(*x.shape[:2], -1, heads, K)  # noqa: E731
    K = d_out_BLD.shape[-1] // heads
    q, k, v = np.moveaxis(split(qkv_BLX), 2, 0)
    d_out = split(d_out_BLD)[:, :, 0]
    s = np.einsum("blnk,bmnk->bnlm", q, k) / K**0.5
    if causal:
        s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("blnk,bmnk->bnlm", d_out, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / K**0.5
    out = np.einsum("bnlm,bmnk->blnk", p, v)
    gradients = (
        np.einsum("bnlm,bmnk->blnk", ds, k),
        np.einsum("bnlm,blnk->bmnk", ds, q),
        np.einsum("bnlm,blnk->bmnk", p, d_out),
    )
    return out.reshape(d_out_BLD.shape), np.stack(gradients, 2).reshape(qkv_BLX.shape)


def errors(found, expected):
    return np.array(
        [
            np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
            for a, b in zip(found, expected, strict=True)
        ]
    )


def assert_as_exact_as_plain(heads: int, causal: bool, *given):
    ours = value_and_gradient(lambda x: short_attention(x, heads, causal, True), *given)
    theirs = value_and_gradient(lambda x: plain(x, heads, causal), *given)
    exact = in_float64(heads, causal, *given)
    ours, theirs = errors(ours, exact), errors(theirs, exact)
    assert (ours <= 1.05 * theirs).all(), (ours, theirs)


@pytest.mark.parametrize("head_width", [72, 80, 96, 128])
def test_every_head_width_is_as_exact_as_plain_bfloat16(head_width):
    heads = WIDTHS[head_width]
    assert_as_exact_as_plain(heads, head_width == 80, *arrays(21, heads, head_width))


@pytest.mark.parametrize(
    ("L", "causal"),
    [(77, True), (128, False), (197, False), (257, False), (300, True), (800, True)],
)
def test_every_length_is_as_exact_as_plain_bfloat16(L, causal):
    """A row that the loops over queries forget, or see twice, is wrong by far more."""
    assert_as_exact_as_plain(2, causal, *arrays(L, 2, 64))


def test_large_logits_neither_overflow_nor_lose_their_gradient():
    assert_as_exact_as_plain(2, True, *arrays(77, 2, 64, scale=9.0))


def test_windows_cover_every_lane_of_a_group_once():
    for head_width, heads in WIDTHS.items():
        found = windows(head_width)
        assert len(found) == heads
        lanes = [range(w.start + w.first, w.start + w.last) for w in found]
        assert [lane for part in lanes for lane in part] == list(range(heads * head_width))
        assert all(w.start % 128 == w.stop % 128 == 0 for w in found)


def test_the_backward_pass_keeps_nothing_but_its_input():
    qkv_BLX, _ = arrays(77, 2, 64)
    form = functools.partial(short_attention, heads=2, causal=False, interpret=True)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(form, x)[1], qkv_BLX))
    assert [leaf.shape for leaf in kept] == [qkv_BLX.shape]


# ------------------------------------------------------------------------------ over devices


def loss_and_gradient(form, qkv_BLX):
    loss = lambda x: jnp.sin(form(x).astype(jnp.float32)).sum()  # noqa: E731
    return jax.device_get(jax.jit(jax.value_and_grad(loss))(qkv_BLX))


def test_over_a_mesh_each_device_attends_to_its_own_rows(mesh):
    qkv_BLX, _ = arrays(21, 2, 64, batch=8)
    form = functools.partial(kernel_attention, heads=2, causal=True)
    expected = loss_and_gradient(functools.partial(form, mesh=None), qkv_BLX)
    mesh = mesh(4, 2)
    found = loss_and_gradient(
        functools.partial(form, mesh=mesh), jax.device_put(qkv_BLX, sharding.batch_sharding(mesh))
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(found[1], expected[1])


def test_inside_a_users_shard_map_the_kernel_is_called_as_it_is(mesh):
    mesh = mesh(2, 2)
    seen = []

    def inside(qkv_BLX):
        seen.append(kind_for_blocks("pallas", jnp.bfloat16, (2, 21, 128), heads=2, mesh=None))
        return kernel_attention(qkv_BLX, heads=2, causal=False, mesh=mesh)

    qkv_BLX, _ = arrays(21, 2, 64, batch=8)
    rows = P(mesh.axis_names)
    # The interpreter of kernels does not know the marks of what varies; the compiled kernel does.
    form = jax.shard_map(inside, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    expected = loss_and_gradient(
        functools.partial(kernel_attention, heads=2, causal=False, mesh=None), qkv_BLX
    )
    np.testing.assert_array_equal(loss_and_gradient(form, qkv_BLX)[1], expected[1])
    assert set(seen) == {"pallas"}


@pytest.mark.parametrize("remat", ["none", "attention", "full"])
def test_blocks_with_the_kernel_train_like_blocks_without_it(mesh, remat):
    mesh = mesh(2, 2)
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(4, 21, 128)), jnp.bfloat16)
    blocks = functools.partial(
        Transformer, depth=2, heads=2, mlp_width=64, activation="gelu", norm_epsilon=1e-5,
        causal=True, remat=remat, dtype=jnp.bfloat16, constrain=sharding.constrain_batch(mesh),
    )  # fmt: skip
    shapes = jax.eval_shape(blocks(kind="plain").init, jax.random.key(0), x_BLD)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: jnp.float32(rng.normal(size=s.shape) / 9), shapes)

    def gradients(kind: str):
        model = blocks(kind=kind)
        loss = lambda v: jnp.square(model.apply(v, x_BLD).astype(jnp.float32)).sum()  # noqa: E731
        places = sharding.shardings(mesh, variables)
        text = str(jax.make_jaxpr(jax.grad(loss))(variables))
        return text.count("pallas_call["), jax.jit(jax.grad(loss), in_shardings=(places,))(
            variables
        )

    (none, expected), (kernels, found) = gradients("plain"), gradients("pallas")
    # Forward and backward; computed again under `full` alone, as the result is kept otherwise.
    assert (none, kernels) == (0, 3 if remat == "full" else 2)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(a - b) < 0.02 * np.linalg.norm(b) + 1e-3


# ---------------------------------------------------------------------------------- the choice


class Tpu:
    platform, device_kind = "tpu", "TPU v5 lite"


@pytest.mark.parametrize(
    ("batch", "dtype", "shape", "kind", "form"),
    [
        (8, "bfloat16", (197, 768, 12), "auto", "pallas"),
        (8, "bfloat16", (197, 768, 12), "plain", "plain"),
        (8, "float32", (197, 768, 12), "auto", "plain"),
        (1, "bfloat16", (197, 768, 12), "auto", "plain"),  # as `init` has it
        (8, "bfloat16", (197, 192, 3), "auto", "plain"),  # a width that is no multiple of 128
        (8, "bfloat16", (4096, 768, 12), "auto", "plain"),
    ],
)
def test_auto_takes_the_kernel_on_a_tpu_where_it_fits(
    monkeypatch, mesh, batch, dtype, shape, kind, form
):
    monkeypatch.setattr(attention_lib, "target_device", Tpu)
    L, D, heads = shape
    given = {"heads": heads, "mesh": mesh(4, 2)}
    assert kind_for_blocks(kind, jnp.dtype(dtype), (batch, L, D), **given) == form


def test_without_a_mesh_the_kernel_is_taken_where_there_is_one_device(monkeypatch):
    monkeypatch.setattr(attention_lib, "target_device", Tpu)
    given = ("auto", jnp.bfloat16, (8, 197, 768))
    assert kind_for_blocks(*given, heads=12, mesh=None) == "plain"  # XLA may split this batch
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert kind_for_blocks(*given, heads=12, mesh=None) == "pallas"


def test_elsewhere_auto_does_not_take_it_and_what_does_not_fit_is_named():
    given = {"heads": 12, "mesh": None}
    assert kind_for_blocks("auto", jnp.bfloat16, (8, 197, 768), **given) == "plain"
    with pytest.raises(ValueError, match="attention=pallas needs dtype=bfloat16, not float32"):
        kind_for_blocks("pallas", jnp.float32, (8, 197, 768), **given)
    with pytest.raises(ValueError, match="pallas needs a width that is a multiple of 128"):
        kind_for_blocks("pallas", jnp.bfloat16, (8, 197, 192), heads=3, mesh=None)


@pytest.mark.parametrize(
    ("L", "D", "heads"),
    [(257, 1024, 16), (577, 1024, 16), (257, 1408, 16), (257, 1280, 16), (257, 1664, 16),
     (729, 1152, 16), (256, 1536, 24), (1024, 1024, 16)],
)  # fmt: skip
def test_towers_of_released_models_fit(L, D, heads):
    assert obstacle(jnp.bfloat16, L, D, heads) == ""


def test_chips_with_little_fast_memory_take_plain_attention_for_wide_towers(monkeypatch):
    monkeypatch.setattr(Tpu, "device_kind", "TPU v4")
    monkeypatch.setattr(short_attention_lib, "target_device", Tpu)
    assert obstacle(jnp.bfloat16, 197, 768, 12) == ""
    assert "a shorter sequence or a narrower tower" in obstacle(jnp.bfloat16, 257, 1024, 16)

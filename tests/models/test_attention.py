"""Attention against its definition."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.hardware import traced_for
from clip_jax.models.attention import attention, check_kind, fastest_kind, plain_attention


def qkv(L: int = 5, M: int = 5, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=(2, n, 3, 4)), dtype) for n in (L, M, M))


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_a_softmax_over_what_may_be_seen(causal):
    q, k, v = (np.asarray(x, np.float64) for x in qkv())
    expected = np.zeros_like(q)
    for batch, head, row in np.ndindex(2, 3, 5):
        seen = row + 1 if causal else 5
        logits = k[batch, :seen, head] @ q[batch, row, head] / 2
        weights = np.exp(logits) / np.exp(logits).sum()
        expected[batch, row, head] = weights @ v[batch, :seen, head]
    np.testing.assert_allclose(attention(*qkv(), causal=causal), expected, atol=1e-6)


def test_one_query_may_attend_to_many_keys():
    assert plain_attention(*qkv(L=1, M=7), causal=False).shape == (2, 1, 3, 4)


def test_bfloat16_factors_keep_a_float32_softmax():
    exact = plain_attention(*(x.astype(jnp.float32) for x in qkv(dtype=jnp.bfloat16)), causal=True)
    rounded = plain_attention(*qkv(dtype=jnp.bfloat16), causal=True)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.03)
    program = jax.jit(plain_attention, static_argnames="causal").lower(
        *qkv(dtype=jnp.bfloat16), causal=True
    )
    exponentials = [line for line in program.as_text().splitlines() if "exponential" in line]
    assert exponentials and all("xf32>" in line for line in exponentials)


def device(platform: str, capability: str | None = None, kind: str = "") -> SimpleNamespace:
    said = {} if capability is None else {"compute_capability": capability}
    return SimpleNamespace(platform=platform, device_kind=kind or platform, **said)


H100 = device("gpu", "9.0", "NVIDIA H100 80GB HBM3")


@pytest.mark.parametrize(
    ("found", "dtype", "head_width", "kind"),
    [
        (H100, "bfloat16", 64, "cudnn"),
        (H100, "float16", 128, "cudnn"),
        (H100, "float32", 64, "plain"),
        (H100, "bfloat16", 60, "plain"),
        (H100, "bfloat16", 136, "plain"),
        (device("gpu", "8.0", "NVIDIA A100-SXM4-80GB"), "bfloat16", 112, "cudnn"),
        (device("gpu", "8.9", "NVIDIA L4"), "bfloat16", 64, "cudnn"),
        (device("gpu", "10.0", "NVIDIA B200"), "bfloat16", 64, "cudnn"),
        (device("gpu", "12.0", "NVIDIA RTX PRO 6000"), "bfloat16", 64, "cudnn"),
        (device("gpu", "7.0", "Tesla V100-SXM2-16GB"), "bfloat16", 64, "plain"),
        (device("gpu", "7.5", "Tesla T4"), "float16", 64, "plain"),
        (device("gpu", "gfx942", "AMD Instinct MI300X"), "bfloat16", 64, "plain"),
        (device("tpu"), "bfloat16", 64, "plain"),
        (device("cpu"), "bfloat16", 64, "plain"),
    ],
)
def test_the_fastest_exact_form_of_the_device_is_taken(found, dtype, head_width, kind):
    assert fastest_kind(dtype, head_width, device=found) == kind


@pytest.mark.parametrize(
    ("found", "dtype", "head_width", "named"),
    [
        (device("cpu"), "bfloat16", 64, "compute capability 8.0 or higher, not cpu"),
        (device("gpu", "7.5", "Tesla T4"), "bfloat16", 64, "8.0 or higher, not Tesla T4"),
        (device("gpu", "gfx942", "AMD"), "bfloat16", 64, "an NVIDIA GPU .* not AMD"),
        (H100, "float32", 64, "dtype=bfloat16, not float32"),
        (H100, "bfloat16", 20, "a multiple of 8 and at most 128 numbers, not 20"),
    ],
)
def test_the_fused_kernel_is_refused_where_there_is_none(found, dtype, head_width, named):
    x = jnp.zeros((1, 4, 2, head_width), dtype)
    with pytest.raises(ValueError, match=f"attention=cudnn needs .*{named}"), traced_for(found):
        attention(x, x, x, kind="cudnn")


def test_the_fused_kernel_may_be_asked_for_where_it_works():
    check_kind("cudnn", "bfloat16", device=H100)  # as settings name a type
    check_kind("plain", "float32", device=device("cpu"))

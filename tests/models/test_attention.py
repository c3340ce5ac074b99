"""Attention against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models import attention as module
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


@pytest.mark.parametrize(
    ("backend", "dtype", "kind"),
    [
        ("gpu", jnp.bfloat16, "cudnn"),
        ("gpu", jnp.float32, "plain"),
        ("tpu", jnp.bfloat16, "plain"),
        ("cpu", jnp.bfloat16, "plain"),
    ],
)
def test_the_fastest_exact_form_of_the_backend_is_taken(backend, dtype, kind, monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    assert fastest_kind(jnp.dtype(dtype)) == kind


@pytest.mark.parametrize(
    ("backend", "dtype", "named"),
    [("cpu", jnp.bfloat16, "a GPU, not cpu"), ("gpu", jnp.float32, "dtype=bfloat16, not float32")],
)
def test_the_fused_kernel_is_refused_where_there_is_none(backend, dtype, named, monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: backend)
    with pytest.raises(ValueError, match=f"attention=cudnn needs {named}"):
        attention(*qkv(dtype=dtype), kind="cudnn")


def test_the_fused_kernel_is_taken_where_it_works(monkeypatch):
    monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")
    check_kind("cudnn", "bfloat16")  # as settings name a type

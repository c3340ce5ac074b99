"""Exact attention, by the fastest form that a backend has."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from clip_jax.config import AttentionKind


def attention(
    q_BLNK: jax.Array,
    k_BMNK: jax.Array,
    v_BMNK: jax.Array,
    *,
    causal: bool = False,
    kind: AttentionKind = "auto",
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v for every head, the softmax in float32 (arXiv:1706.03762, 3.2.1)."""
    if kind == "auto":
        kind = fastest_kind(q_BLNK.dtype)
    check_kind(kind, q_BLNK.dtype)
    if kind == "plain":
        x_BLNK = plain_attention(q_BLNK, k_BMNK, v_BMNK, causal=causal)
        return checkpoint_name(x_BLNK, "attended")  # for policies of rematerialisation
    return jax.nn.dot_product_attention(
        q_BLNK, k_BMNK, v_BMNK, is_causal=causal, implementation="cudnn"
    )


def fastest_kind(dtype: jnp.dtype | str) -> AttentionKind:
    """cuDNN's fused kernel takes 16-bit numbers on a GPU; elsewhere the plain form is as fast."""
    on_gpu = jax.default_backend() == "gpu"
    return "cudnn" if on_gpu and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) else "plain"


def check_kind(kind: AttentionKind, dtype: jnp.dtype | str, *, setting: str = "attention"):
    """Refuse cuDNN's kernel, by the name of the setting that asks for it, where it cannot work."""
    if kind != "cudnn" or fastest_kind(dtype) == "cudnn":
        return
    backend = jax.default_backend()
    lack = f"a GPU, not {backend}" if backend != "gpu" else f"dtype=bfloat16, not {dtype}"
    raise ValueError(f"{setting}=cudnn needs {lack}: auto takes the fastest form that works here")


def plain_attention(
    q_BLNK: jax.Array, k_BMNK: jax.Array, v_BMNK: jax.Array, *, causal: bool
) -> jax.Array:
    """The reference that every other form must equal."""
    precision = None if q_BLNK.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    logits_BNLM = jnp.einsum(
        "BLNK,BMNK->BNLM",
        q_BLNK * q_BLNK.shape[-1] ** -0.5,
        k_BMNK,
        precision=precision,
        preferred_element_type=jnp.promote_types(q_BLNK.dtype, jnp.float32),
    )
    if causal:
        L, M = logits_BNLM.shape[-2:]
        visible_LM = jnp.tril(jnp.ones((L, M), bool))
        logits_BNLM = jnp.where(visible_LM, logits_BNLM, jnp.finfo(logits_BNLM.dtype).min)
    weights_BNLM = jax.nn.softmax(logits_BNLM, axis=-1).astype(q_BLNK.dtype)
    return jnp.einsum("BNLM,BMNK->BLNK", weights_BNLM, v_BMNK, precision=precision)

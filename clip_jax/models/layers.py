"""The transformer that both towers share: attention, MLP, block, and a scanned stack of blocks."""

# X: queries, keys and values side by side, 3 D.

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clip_jax.config import Activation, AttentionKind, Remat
from clip_jax.models.attention import attention
from clip_jax.models.linear import Dense


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x (arXiv:1606.08415), computed in float32.

    From erf, as PyTorch does it: XLA makes one pass over memory of it, of jax.nn.gelu's erfc four on a CPU.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}

# What the backward pass finds again instead of computing it anew, from nothing kept to all kept.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("qkv", "attended"),
    "dots": jax.checkpoint_policies.save_only_these_names("dot"),
}


def identity(x: jax.Array) -> jax.Array:
    return x


class LayerNorm(nn.Module):
    """Layer normalisation in float32 at least, whatever the tower computes in."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        D = x_BLD.shape[-1]
        scale_D = self.param("scale", nn.initializers.ones, (D,))
        bias_D = self.param("bias", nn.initializers.zeros, (D,))
        return normalize(x_BLD, scale_D, bias_D, self.epsilon, self.dtype)


@functools.partial(jax.checkpoint, static_argnums=(3, 4), prevent_cse=False)
def normalize(
    x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float, dtype: jnp.dtype
) -> jax.Array:
    # Of all that it computes in float32 only x is kept, in its 16 bits: the rest is cheap.
    x_BLD = x_BLD.astype(jnp.promote_types(dtype, jnp.float32))
    x_BLD = x_BLD - x_BLD.mean(axis=-1, keepdims=True)
    variance_BL1 = jnp.square(x_BLD).mean(axis=-1, keepdims=True)
    x_BLD = x_BLD * jax.lax.rsqrt(variance_BL1 + epsilon)
    return (x_BLD * scale_D + bias_D).astype(dtype)


class Attention(nn.Module):
    """Multi-head self-attention. One matrix product makes queries, keys and values, in that order."""

    heads: int
    causal: bool
    kind: AttentionKind
    in_std: float
    out_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        B, L, D = x_BLD.shape
        qkv_BLX = Dense(3 * D, self.in_std, self.dtype, name="qkv")(x_BLD)
        qkv_BLX = checkpoint_name(qkv_BLX, "qkv")
        qkv_BL3NK = qkv_BLX.reshape(B, L, 3, self.heads, D // self.heads)
        q_BLNK, k_BLNK, v_BLNK = (qkv_BL3NK[:, :, i] for i in range(3))
        x_BLNK = attention(q_BLNK, k_BLNK, v_BLNK, causal=self.causal, kind=self.kind)
        x_BLD = checkpoint_name(x_BLNK.reshape(B, L, D), "attended")
        return Dense(D, self.out_std, self.dtype, name="out")(x_BLD)


class Mlp(nn.Module):
    width: int
    activation: Activation
    in_std: float
    out_std: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        h_BLF = Dense(self.width, self.in_std, self.dtype, name="up")(x_BLD)
        # Its derivative is computed anew from h; kept, it would be several arrays of that size.
        h_BLF = jax.checkpoint(ACTIVATIONS[self.activation], prevent_cse=False)(h_BLF)
        return Dense(x_BLD.shape[-1], self.out_std, self.dtype, name="down")(h_BLF)


class Block(nn.Module):
    """A pre-norm residual block, called by `nn.scan` with a carry and nothing to stack."""

    heads: int
    mlp_width: int
    depth: int
    activation: Activation
    norm_epsilon: float
    causal: bool
    kind: AttentionKind
    dtype: jnp.dtype
    constrain: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> tuple[jax.Array, None]:
        D = x_BLD.shape[-1]
        # Standard deviations of OpenAI's text tower; the residual branches shrink with depth.
        in_std, out_std = D**-0.5, D**-0.5 * (2 * self.depth) ** -0.5
        norm = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        # Without this constraint the partitioner gathers the batch when parameters are sharded.
        x_BLD = self.constrain(x_BLD)
        y_BLD = LayerNorm(name="attention_norm", **norm)(x_BLD)
        x_BLD = x_BLD + Attention(
            self.heads, self.causal, self.kind, in_std, out_std, self.dtype, name="attention"
        )(y_BLD)
        y_BLD = LayerNorm(name="mlp_norm", **norm)(x_BLD)
        x_BLD = x_BLD + Mlp(
            self.mlp_width, self.activation, (2 * D) ** -0.5, out_std, self.dtype, name="mlp"
        )(y_BLD)
        return x_BLD, None


class Transformer(nn.Module):
    """`depth` blocks as one scanned block, so that compile time does not grow with depth.

    Variables may have the first blocks apart, as `locked_blocks`: no gradient reaches those.
    """

    depth: int
    heads: int
    mlp_width: int
    activation: Activation
    norm_epsilon: float
    causal: bool
    kind: AttentionKind
    remat: Remat
    dtype: jnp.dtype
    unroll: int = 1
    constrain: Callable[[jax.Array], jax.Array] = identity

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        block = Block
        if self.remat != "none":
            # Inside a scan nothing can be merged across the boundary, so no barrier is needed.
            block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=False)

        def scan(name: str, blocks: int, x_BLD: jax.Array) -> jax.Array:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=blocks,
                unroll=min(self.unroll, blocks),
            )(
                heads=self.heads,
                mlp_width=self.mlp_width,
                depth=self.depth,
                activation=self.activation,
                norm_epsilon=self.norm_epsilon,
                causal=self.causal,
                kind=self.kind,
                dtype=self.dtype,
                constrain=self.constrain,
                name=name,
            )
            return stack(x_BLD)[0]

        locked = 0
        if self.has_variable("params", "locked_blocks"):
            locked = jax.tree.leaves(self.get_variable("params", "locked_blocks"))[0].shape[0]
            x_BLD = jax.lax.stop_gradient(scan("locked_blocks", locked, x_BLD))
        return self.constrain(scan("blocks", self.depth - locked, x_BLD))

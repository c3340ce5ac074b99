"""The transformer that both towers share: attention, MLP, block, and a scanned stack of blocks."""

# X: queries, keys and values side by side, 3 D.

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from clip_jax.config import Activation, AttentionKind, Remat
from clip_jax.hardware import target_device
from clip_jax.models.attention import attention, even, kernel_attention, kind_for_blocks
from clip_jax.models.linear import Dense, SeparateQkv
from clip_jax.models.stack import Blocks
from clip_jax.models.tower import Compute
from clip_jax.numerics import add_bias, like_rows, pvary_like


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


def keep_attention_and(*names: str) -> Callable[..., bool]:
    """A policy: keep what has one of these names, and all that attention returns.

    Of cuDNN's kernel that is the softmax's sums too, without which it would run again.
    """

    def is_kernel(primitive, *_, **__) -> bool:
        return primitive.name == "dot_product_attention_fwd_wrapper"

    named = jax.checkpoint_policies.save_only_these_names("attended", *names)
    return jax.checkpoint_policies.save_from_both_policies(named, is_kernel)


# What the backward pass finds again instead of computing it again, from nothing kept to all kept.
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": keep_attention_and("qkv"),
    "dots": keep_attention_and("dot"),
}


def identity(x: jax.Array) -> jax.Array:
    return x


def row_major(x: jax.Array) -> jax.Array:
    """x, stored in the order of its axes: outside a loop XLA for GPUs would put the batch last.

    It then writes and reads each activation several times more, to transpose it for the products.
    """
    if target_device().platform != "gpu":
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


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


def normalize(
    x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float, dtype: jnp.dtype
) -> jax.Array:
    return _normalize(*pvary_like(x_BLD, scale_D, bias_D), epsilon, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x_BLD, scale_D, bias_D, epsilon: float, dtype: jnp.dtype) -> jax.Array:
    return _normalize_forward(x_BLD, scale_D, bias_D, epsilon, dtype)[0]


def _normalize_forward(x_BLD, scale_D, bias_D, epsilon: float, dtype: jnp.dtype):
    wide_BLD = x_BLD.astype(jnp.promote_types(dtype, jnp.float32))
    mean_BL1 = wide_BLD.mean(axis=-1, keepdims=True)
    variance_BL1 = jnp.square(wide_BLD - mean_BL1).mean(axis=-1, keepdims=True)
    inverse_BL1 = jax.lax.rsqrt(variance_BL1 + epsilon)
    scale_11D, bias_11D = (like_rows(v_D, x_BLD) for v_D in (scale_D, bias_D))
    y_BLD = ((wide_BLD - mean_BL1) * inverse_BL1 * scale_11D + bias_11D).astype(dtype)
    # x is kept in its 16 bits; with both numbers of each row the backward pass is one reduction.
    return y_BLD, (x_BLD, mean_BL1, inverse_BL1, scale_D, bias_D)


def _normalize_backward(epsilon: float, dtype: jnp.dtype, saved, given_BLD):
    x_BLD, mean_BL1, inverse_BL1, scale_D, bias_D = saved
    z_BLD = (x_BLD.astype(mean_BL1.dtype) - mean_BL1) * inverse_BL1
    dy_BLD = given_BLD.astype(z_BLD.dtype)
    dz_BLD = dy_BLD * like_rows(scale_D, dy_BLD)
    constant_BL1 = dz_BLD.mean(axis=-1, keepdims=True)
    along_BL1 = (dz_BLD * z_BLD).mean(axis=-1, keepdims=True)
    dx_BLD = inverse_BL1 * (dz_BLD - constant_BL1 - z_BLD * along_BL1)
    if target_device().platform == "gpu":
        # Sums over rows are another kernel there, which had better read 16 bits again: XLA would
        # write products of both in float32 for it.
        x_BLD, again_BLD = jax.lax.optimization_barrier((x_BLD, given_BLD))
        z_BLD = (x_BLD.astype(mean_BL1.dtype) - mean_BL1) * inverse_BL1
        dy_BLD = again_BLD.astype(z_BLD.dtype)
    rows = tuple(range(x_BLD.ndim - 1))
    d_scale_D = (dy_BLD * z_BLD).sum(axis=rows).astype(scale_D.dtype)
    return dx_BLD.astype(x_BLD.dtype), d_scale_D, dy_BLD.sum(axis=rows).astype(bias_D.dtype)


_normalize.defvjp(_normalize_forward, _normalize_backward)


class Attention(nn.Module):
    """Multi-head self-attention. One matrix product makes queries, keys and values, in that order."""

    heads: int
    causal: bool
    kind: AttentionKind
    in_std: float
    out_std: float
    dtype: jnp.dtype
    length: int | None = None  # positions from there on are padding
    mesh: Mesh | None = None  # what the batch is split over, as far as the model knows

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        B, L, D = x_BLD.shape
        out = Dense(D, self.out_std, self.dtype, name="out")
        fused, shift_D = self.kind == "cudnn", None
        if fused:
            qkv, shift_D = SeparateQkv(self.in_std, self.dtype, name="qkv")(x_BLD)
        else:
            qkv = Dense(3 * D, self.in_std, self.dtype, name="qkv")(x_BLD)
        qkv = checkpoint_name(qkv, "qkv")
        if self.kind == "pallas":
            x_BLD = kernel_attention(qkv, heads=self.heads, causal=self.causal, mesh=self.mesh)
            return out(checkpoint_name(x_BLD, "attended"))
        parts = qkv if fused else jnp.split(qkv, 3, axis=-1)
        q_BLNK, k_BLNK, v_BLNK = (x.reshape(B, L, self.heads, D // self.heads) for x in parts)
        x_BLNK = attention(
            q_BLNK, k_BLNK, v_BLNK, causal=self.causal, kind=self.kind, length=self.length
        )
        x_BLD = x_BLNK.reshape(B, L, D)
        if not fused:  # else `keep_attention_and` finds it
            x_BLD = checkpoint_name(x_BLD, "attended")
        return out(x_BLD, shift_D)


class Mlp(nn.Module):
    width: int
    activation: Activation
    in_std: float
    out_std: float
    dtype: jnp.dtype
    prevent_cse: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        h_BLF, bias_F = Dense(self.width, self.in_std, self.dtype, apart=True, name="up")(x_BLD)

        def activation(h_BLF, bias_F):
            return ACTIVATIONS[self.activation](add_bias(h_BLF, bias_F)).astype(self.dtype)

        # Its derivative is computed again from h; kept, it would be several arrays of that size.
        h_BLF = jax.checkpoint(activation, prevent_cse=self.prevent_cse)(h_BLF, bias_F)
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
    looped: bool
    length: int | None
    prevent_cse: bool
    mesh: Mesh | None
    constrain: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> tuple[jax.Array, None]:
        D = x_BLD.shape[-1]
        # Standard deviations of OpenAI's text tower; the residual branches shrink with depth.
        in_std, out_std = D**-0.5, D**-0.5 * (2 * self.depth) ** -0.5
        norm = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        # Without this constraint the partitioner gathers the batch when parameters are sharded.
        x_BLD = self.constrain(x_BLD)
        if not self.looped:
            x_BLD = row_major(x_BLD)
        y_BLD = LayerNorm(name="attention_norm", **norm)(x_BLD)
        x_BLD = x_BLD + Attention(
            self.heads,
            self.causal,
            self.kind,
            in_std,
            out_std,
            self.dtype,
            self.length,
            self.mesh,
            name="attention",
        )(y_BLD)
        y_BLD = LayerNorm(name="mlp_norm", **norm)(x_BLD)
        x_BLD = x_BLD + Mlp(
            self.mlp_width,
            self.activation,
            (2 * D) ** -0.5,
            out_std,
            self.dtype,
            self.prevent_cse,
            name="mlp",
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
        L = x_BLD.shape[1]
        mesh = getattr(self.constrain, "mesh", None)
        kind = kind_for_blocks(self.kind, self.dtype, x_BLD.shape, heads=self.heads, mesh=mesh)
        padded = even(L) if kind == "cudnn" else L
        # Once here, and not before each attention, where it would cost a copy.
        x_BLD = jnp.pad(x_BLD, ((0, 0), (0, padded - L), (0, 0)))

        def scan(name: str, blocks: int, x_BLD: jax.Array) -> jax.Array:
            # What stands outside a loop XLA would merge with what is computed again: a scan of
            # one turn, or the blocks that are left over by its turns. Else no barrier is needed.
            looped = blocks >= 2 * self.unroll and blocks % self.unroll == 0
            block = Block
            if self.remat != "none":
                policy = REMAT_POLICIES[self.remat]
                block = nn.remat(Block, policy=policy, prevent_cse=not looped)
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
                kind=kind,
                dtype=self.dtype,
                length=L if padded > L else None,
                looped=looped,
                # Around the whole block stands a barrier already, where there is remat.
                prevent_cse=not looped and self.remat == "none",
                mesh=mesh,
                constrain=self.constrain,
                name=name,
            )
            return stack(x_BLD)[0]

        locked = 0
        if self.has_variable("params", "locked_blocks"):
            locked = jax.tree.leaves(self.get_variable("params", "locked_blocks"))[0].shape[0]
            x_BLD = jax.lax.stop_gradient(scan("locked_blocks", locked, x_BLD))
        return self.constrain(scan("blocks", self.depth - locked, x_BLD))[:, :L]


def transformer(tower: Blocks, compute: Compute, *, causal: bool) -> Transformer:
    """The blocks of a tower, named as freezing and layer decay look for them."""
    return Transformer(
        depth=tower.depth,
        heads=tower.heads,
        mlp_width=tower.mlp_width,
        activation=tower.activation,
        norm_epsilon=tower.norm_epsilon,
        causal=causal,
        kind=compute.attention,
        remat=compute.remat,
        dtype=compute.dtype,
        unroll=compute.unroll,
        constrain=compute.constrain,
        name="transformer",
    )

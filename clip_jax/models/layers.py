"""The transformer that both towers share: attention, MLP, block, and a scanned stack of blocks."""

# X: queries, keys and values side by side, 3 D.

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from clip_jax.config import Activation, AttentionKind, Remat
from clip_jax.hardware import target_device
from clip_jax.models.attention import (
    attention,
    even,
    kernel_attention,
    kind_for_blocks,
    plain_attention,
)
from clip_jax.models.linear import Dense, QueriesOfSome, SeparateQkv
from clip_jax.models.normalization import LayerNorm
from clip_jax.models.reading import Position, at, leave_last, position
from clip_jax.models.stack import Blocks
from clip_jax.models.tower import Compute
from clip_jax.numerics import add_bias


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


# Rows on a device from which a loop leaves its last block out. The parameters of the others are
# copied for it, which costs more than few rows do.
ROWS_TO_LEAVE_LAST = 8192


def identity(x: jax.Array) -> jax.Array:
    return x


def row_major(x: jax.Array) -> jax.Array:
    """x, stored in the order of its axes: outside a loop XLA for GPUs would put the batch last.

    It then writes and reads each activation several times more, to transpose it for the products.
    """
    if target_device().platform != "gpu":
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


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
    def __call__(self, x_BLD: jax.Array, read: Position | None = None) -> jax.Array:
        """Of all positions (B, L, D), or of the one that is read (B, D)."""
        B, L, D = x_BLD.shape
        out = Dense(D, self.out_std, self.dtype, name="out")
        if read is not None:
            qkv = QueriesOfSome(self.in_std, self.dtype, name="qkv")
            q_BD, k_BLD, v_BLD = qkv(at(x_BLD, read), x_BLD)
            # Else XLA for GPUs joins their gradients, outer products, with the products that follow,
            # for which Triton then has no tiles.
            k_BLD, v_BLD = row_major(k_BLD), row_major(v_BLD)
            q_B1NK, k_BLNK, v_BLNK = (
                x.reshape(B, -1, self.heads, D // self.heads) for x in (q_BD, k_BLD, v_BLD)
            )
            seen = read + 1 if self.causal else self.length
            x_B1NK = plain_attention(q_B1NK, k_BLNK, v_BLNK, causal=False, length=seen)
            return out(checkpoint_name(x_B1NK.reshape(B, D), "attended"))
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
    def __call__(self, x_BLD: jax.Array, read: Position | None = None) -> tuple[jax.Array, None]:
        """What follows from x (B, L, D): of that shape, or (B, D) at the position that is read."""
        D = x_BLD.shape[-1]
        # Standard deviations of OpenAI's text tower; the residual branches shrink with depth.
        in_std, out_std = D**-0.5, D**-0.5 * (2 * self.depth) ** -0.5
        norm = {"epsilon": self.norm_epsilon, "dtype": self.dtype}
        # Without this constraint the partitioner gathers the batch when parameters are sharded.
        x_BLD = self.constrain(x_BLD)
        if not self.looped:
            x_BLD = row_major(x_BLD)
        y_BLD = LayerNorm(name="attention_norm", **norm)(x_BLD)
        x_BLD = at(x_BLD, read) + Attention(
            self.heads,
            self.causal,
            self.kind,
            in_std,
            out_std,
            self.dtype,
            self.length,
            self.mesh,
            name="attention",
        )(y_BLD, read)
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
    def __call__(
        self, x_BLD: jax.Array, read: Position | None = None
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """What the last block returns (B, L, D), and, given a position to `read`, that position of it (B, D).

        The latter is computed by itself, as the last block's keys and values alone are needed of all
        positions. Nobody pays for the former who does not use it: a program leaves out what nothing
        follows from.
        """
        B, L, _ = x_BLD.shape
        read = None if read is None else position(read, B, L)
        mesh = getattr(self.constrain, "mesh", None)
        kind = kind_for_blocks(self.kind, self.dtype, x_BLD.shape, heads=self.heads, mesh=mesh)
        padded = even(L) if kind == "cudnn" else L
        # Once here, and not before each attention, where it would cost a copy.
        x_BLD = jnp.pad(x_BLD, ((0, 0), (0, padded - L), (0, 0)))

        settings = functools.partial(
            self._settings, kind=kind, length=L if padded > L else None, mesh=mesh
        )

        def scan(name: str, blocks: int, x_BLD: jax.Array, params: Any = None) -> jax.Array:
            """So many blocks, with these parameters in place of all that are there."""
            block, given = Block, settings(blocks)
            if self.remat != "none":
                policy = REMAT_POLICIES[self.remat]
                block = nn.remat(Block, policy=policy, prevent_cse=not given["looped"])
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=blocks,
                unroll=min(self.unroll, blocks),
            )
            if params is not None:
                stack = nn.map_variables(stack, "params", lambda _: {"params": params})
            return stack(**given, name=name)(x_BLD)[0]

        locked = 0
        if self.has_variable("params", "locked_blocks"):
            locked = jax.tree.leaves(self.get_variable("params", "locked_blocks"))[0].shape[0]
            x_BLD = jax.lax.stop_gradient(scan("locked_blocks", locked, x_BLD))
        blocks = self.depth - locked
        if read is None or self.is_initializing() or not self._leaves_last(blocks, B * L):
            x_BLD = self.constrain(scan("blocks", blocks, x_BLD))[:, :L]
            return x_BLD if read is None else (x_BLD, at(x_BLD, read))

        first, last = leave_last(self.get_variable("params", "blocks"))
        if blocks > 1:
            x_BLD = scan("blocks", blocks - 1, x_BLD, first)

        def apply(read: Position | None) -> jax.Array:
            def block(params, x_BLD):
                with jax.named_scope("blocks"):
                    made = Block(**settings(1), parent=None)
                    return made.apply({"params": params}, x_BLD, read)[0]

            if self.remat != "none":
                block = jax.checkpoint(block, policy=REMAT_POLICIES[self.remat])
            return self.constrain(block(last, x_BLD))

        return apply(None)[:, :L], apply(read)

    def _settings(
        self, blocks: int, *, kind: AttentionKind, length: int | None, mesh: Mesh | None
    ) -> dict:
        """Of a block among so many in a scan."""
        # What stands outside a loop XLA would merge with what is computed again: a scan of
        # one turn, or the blocks that are left over by its turns. Else no barrier is needed.
        looped = blocks >= 2 * self.unroll and blocks % self.unroll == 0
        return {
            "heads": self.heads,
            "mlp_width": self.mlp_width,
            "depth": self.depth,
            "activation": self.activation,
            "norm_epsilon": self.norm_epsilon,
            "causal": self.causal,
            "kind": kind,
            "dtype": self.dtype,
            "length": length,
            "looped": looped,
            # Around the whole block stands a barrier already, where there is remat.
            "prevent_cse": not looped and self.remat == "none",
            "mesh": mesh,
            "constrain": self.constrain,
        }

    def _leaves_last(self, blocks: int, rows: int) -> bool:
        """Whether it is cheaper to have the last block apart: outside a loop, and of many rows."""
        if self.unroll >= blocks:
            return True
        mesh = getattr(self.constrain, "mesh", None)
        devices = 1 if mesh is None else mesh.size
        # A batch of any size is a symbol, and may be small.
        return isinstance(rows, int) and rows // devices >= ROWS_TO_LEAVE_LAST


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

"""The image tower as CLIP's modified ResNet (arXiv:2103.00020, section 2.4)."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from clip_jax.config import Remat
from clip_jax.models.attention import plain_attention
from clip_jax.models.layers import REMAT_POLICIES
from clip_jax.models.linear import Dense, drawn_as_matrix
from clip_jax.models.positions import resize_grid, square_side
from clip_jax.models.tower import Compute, ImageTower
from clip_jax.numerics import precision_of, project
from clip_jax.registry import BelowOne, Count


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(ImageTower, group="vision."):
    """The image tower as CLIP's modified ResNet (arXiv:2103.00020, section 2.4)."""

    image_size: Count = 224  # pixels on each side
    width: Count = 64  # channels after the stem
    depths: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)  # blocks of each stage
    heads: Count = 32  # of the attention pooling
    batch_norm_momentum: BelowOne = 0.9

    free_fields = ("image_size", "batch_norm_momentum")
    positions_path = "pool/position_embedding"
    kept_share = 0.4  # XLA computes batch normalisation and ReLU again
    sharding_rows = (
        ("pool/(query|key|value)/kernel", 0),
        ("pool/out/kernel", -1),
        ("position_embedding", -1),
        ("conv/kernel", -1),
    )

    def __post_init__(self):
        super().__post_init__()
        self.require(
            self.image_size % 32 == 0, "image_size", "must be a multiple of 32, the stride"
        )
        self.require_multiple("width", "heads", times=32)

    @property
    def grid(self) -> int:
        """Positions that the pooling attends to, on each side."""
        return self.image_size // 32

    def module(self, embed_dim: int, compute: Compute) -> "ResNet":
        return ResNet(self, embed_dim, compute.dtype, compute.remat)

    def flops(self, embed_dim: int, *, train: bool = False) -> float:
        del train
        D, L = 32 * self.width, self.grid**2 + 1
        pool = 2 * (2 * L * D * D + D * D + 2 * L * D + D * embed_dim)
        return pool + sum(2 * k * k * i * o * rows**2 for k, i, o, rows in self._convolutions())

    def parameter_count(self, embed_dim: int) -> int:
        D, L = 32 * self.width, self.grid**2 + 1
        pool = L * D + 3 * (D + 1) * D + (D + 1) * embed_dim
        return pool + sum(k * k * i * o + 2 * o for k, i, o, _ in self._convolutions())

    def matrices_of(self, name: str) -> int:
        return self.heads if re.fullmatch("pool/(query|key|value)/kernel", name) else 1

    def resize(self, params: dict, old: "ResNetConfig") -> dict:
        if self.grid == old.grid:
            return params
        pool = params["pool"]
        resized_LD = resize_grid(pool["position_embedding"], 1, old.grid, self.grid)
        return params | {"pool": pool | {"position_embedding": resized_LD}}

    def at_positions(self, count: int) -> "ResNetConfig":
        return dataclasses.replace(self, image_size=32 * square_side(count - 1))

    def _convolutions(self) -> Iterator[tuple[int, int, int, int]]:
        """Size, input and output channels and rows of output of every convolution."""
        width, rows = self.width, self.image_size // 2
        yield 3, 3, width // 2, rows
        yield 3, width // 2, width // 2, rows
        yield 3, width // 2, width, rows
        rows, channels = rows // 2, width
        for stage, depth in enumerate(self.depths):
            inner, outer = width * 2**stage, width * 2 ** (stage + 2)
            for block in range(depth):
                before, rows = rows, rows // 2 if stage and not block else rows
                yield 1, channels, inner, before
                yield 3, inner, inner, before
                yield 1, inner, outer, rows
                if block == 0:
                    yield 1, channels, outer, rows
                channels = outer


class ResNet(nn.Module):
    """Images (B, H, W, 3), normalised, to embeddings (B, E) and tokens (B, L, D).

    The embeddings are not yet of unit length. The tokens are the last stage's positions.

    Three convolutions as stem, an average pool before every stride so that nothing aliases, and
    attention pooling at the end. Batch statistics live in the collection "batch_stats"; with
    `train=True` they come from the batch that the caller sees, under `jit` the global one.
    """

    config: ResNetConfig
    embed_dim: int
    dtype: jnp.dtype
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, images_BHWC: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        conv_norm = {"momentum": cfg.batch_norm_momentum, "dtype": self.dtype}
        x_BHWC = images_BHWC.astype(self.dtype)
        for i, (width, stride) in enumerate(
            [(cfg.width // 2, 2), (cfg.width // 2, 1), (cfg.width, 1)]
        ):
            x_BHWC = ConvNorm(width, 3, stride=stride, name=f"stem_{i}", **conv_norm)(
                x_BHWC, train=train
            )
            x_BHWC = nn.relu(x_BHWC)
        x_BHWC = nn.avg_pool(x_BHWC, (2, 2), strides=(2, 2))
        block_class = Bottleneck
        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            block_class = nn.remat(Bottleneck, policy=policy, static_argnums=2)  # train
        for stage, depth in enumerate(cfg.depths):
            for block in range(depth):
                x_BHWC = block_class(
                    cfg.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    name=f"stage_{stage}_block_{block}",
                    **conv_norm,
                )(x_BHWC, train)
        x_BE = AttentionPool2d(cfg.heads, self.embed_dim, self.dtype, name="pool")(x_BHWC)
        return x_BE, x_BHWC.reshape(x_BHWC.shape[0], -1, x_BHWC.shape[-1])


class ConvNorm(nn.Module):
    """A convolution without bias and the batch normalisation that follows it."""

    width: int
    size: int
    momentum: float
    dtype: jnp.dtype
    stride: int = 1
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, *, train: bool) -> jax.Array:
        kernel_init = drawn_as_matrix(nn.initializers.lecun_normal())
        if self.size == 1:
            x_BHWC = PointwiseConv(self.width, kernel_init, self.dtype, name="conv")(x_BHWC)
        else:
            pad = self.size // 2
            x_BHWC = nn.Conv(
                self.width,
                (self.size, self.size),
                strides=self.stride,
                padding=[(pad, pad), (pad, pad)],
                use_bias=False,
                kernel_init=kernel_init,
                dtype=self.dtype,
                precision=precision_of(self.dtype),
                name="conv",
            )(x_BHWC)
            x_BHWC = checkpoint_name(x_BHWC, "dot")
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=1e-5,
            dtype=self.dtype,
            scale_init=self.scale_init,
            name="norm",
        )(x_BHWC)


class PointwiseConv(nn.Module):
    """A 1x1 convolution as the matrix product that it is.

    XLA's CPU compiler transposes a convolution's input for the gradient of its kernel, which takes
    longer than the products; of a product it transposes nothing.
    """

    width: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (1, 1, x_BHWC.shape[-1], self.width))
        return project(x_BHWC.astype(self.dtype), kernel[0, 0])


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the channels at the end; strides are average pools."""

    width: int
    momentum: float
    dtype: jnp.dtype
    stride: int = 1

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool) -> jax.Array:
        conv_norm = {"momentum": self.momentum, "dtype": self.dtype}
        window = (self.stride, self.stride)
        y_BHWC = nn.relu(ConvNorm(self.width, 1, name="conv_1", **conv_norm)(x_BHWC, train=train))
        y_BHWC = nn.relu(ConvNorm(self.width, 3, name="conv_2", **conv_norm)(y_BHWC, train=train))
        if self.stride > 1:
            y_BHWC = nn.avg_pool(y_BHWC, window, strides=window)
        # A gain of zero: a new block is its shortcut alone, as OpenAI's are (arXiv:1706.02677, 5.1).
        y_BHWC = ConvNorm(
            4 * self.width, 1, scale_init=nn.initializers.zeros, name="conv_3", **conv_norm
        )(y_BHWC, train=train)
        if self.stride > 1 or x_BHWC.shape[-1] != 4 * self.width:
            if self.stride > 1:
                x_BHWC = nn.avg_pool(x_BHWC, window, strides=window)
            x_BHWC = ConvNorm(4 * self.width, 1, name="shortcut", **conv_norm)(x_BHWC, train=train)
        return nn.relu(x_BHWC + y_BHWC)


class AttentionPool2d(nn.Module):
    """The mean of the positions attends to them all; its answer is the embedding."""

    heads: int
    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        B, H, W, D = x_BHWC.shape
        std = D**-0.5
        x_BLD = x_BHWC.reshape(B, H * W, D)
        x_BLD = jnp.concatenate([x_BLD.mean(axis=1, keepdims=True), x_BLD], axis=1)
        position_LD = self.param("position_embedding", nn.initializers.normal(std), (H * W + 1, D))
        x_BLD = (x_BLD + position_LD[None]).astype(self.dtype)
        heads = (self.heads, D // self.heads)
        q_B1D = Dense(D, std, self.dtype, name="query")(x_BLD[:, :1])
        k_BLD = Dense(D, std, self.dtype, name="key")(x_BLD)
        v_BLD = Dense(D, std, self.dtype, name="value")(x_BLD)
        q_B1NK, k_BLNK, v_BLNK = (x.reshape(*x.shape[:2], *heads) for x in (q_B1D, k_BLD, v_BLD))
        x_B1NK = plain_attention(q_B1NK, k_BLNK, v_BLNK, causal=False)
        return Dense(self.embed_dim, std, self.dtype, name="out")(x_B1NK.reshape(B, D))

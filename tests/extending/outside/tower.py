"""A small convolutional image tower, and a model that has it: `--model.name outside.tower:CONFIG`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.config import ModelConfig
from clip_jax.models.tower import Compute, ImageTower
from clip_jax.models.towers.text_transformer import TextConfig


@dataclass(frozen=True, kw_only=True)
class ConvConfig(ImageTower, group="vision."):
    """Convolutions with a stride of two, and the mean over all positions."""

    image_size: int = 32
    width: int = 32  # channels after the first convolution; they double with each
    stages: int = 3

    # The channels that a convolution makes; the projection has no row, and is split all the same.
    sharding_rows = ((r"conv_\d/kernel", -1),)

    def module(self, embed_dim: int, compute: Compute) -> "ConvTower":
        return ConvTower(self, embed_dim, compute.dtype)

    def flops(self, embed_dim: int, *, train: bool = False) -> float:
        del train
        total, channels, rows = 0, 3, self.image_size
        for stage in range(self.stages):
            before, channels, rows = channels, self.width * 2**stage, rows // 2
            total += 2 * 9 * before * channels * rows**2
        return total + 2 * channels * embed_dim


class ConvTower(nn.Module):
    """Images (B, H, W, 3), normalised, to embeddings (B, E) and tokens (B, L, D)."""

    config: ConvConfig
    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, images_BHWC: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        del train
        x_BHWC = images_BHWC.astype(self.dtype)
        for stage in range(self.config.stages):
            width = self.config.width * 2**stage
            x_BHWC = nn.Conv(width, (3, 3), strides=2, dtype=self.dtype, name=f"conv_{stage}")(
                x_BHWC
            )
            x_BHWC = nn.gelu(nn.LayerNorm(dtype=self.dtype, name=f"norm_{stage}")(x_BHWC))
        x_BLD = x_BHWC.reshape(x_BHWC.shape[0], -1, x_BHWC.shape[-1])
        x_BD = Pool(self.dtype, name="pool")(x_BLD)
        return nn.Dense(self.embed_dim, dtype=self.dtype, name="head")(x_BD), x_BLD


class Pool(nn.Module):
    """The mean of the tokens, in two heads, whose kernel has an axis for them."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        heads = (2, x_BLD.shape[-1] // 2)
        value_BNK = nn.DenseGeneral(heads, dtype=self.dtype, name="value")(x_BLD.mean(axis=1))
        return value_BNK.reshape(x_BLD.shape[0], -1)


CONFIG = ModelConfig(
    embed_dim=64,
    vision=ConvConfig(),
    text=TextConfig(width=64, depth=2, heads=2, mlp_width=128, context_length=16, vocab_size=300),
    tokenizer="sentencepiece",
)

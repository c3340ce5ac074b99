"""The image tower as a vision transformer, with the heads of CLIP, CLIPA and SigLIP."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clip_jax.config import Activation
from clip_jax.models.attention import plain_attention
from clip_jax.models.layers import Mlp, transformer
from clip_jax.models.linear import Dense, drawn_as_matrix
from clip_jax.models.normalization import LayerNorm
from clip_jax.models.positions import resize_grid, square_side
from clip_jax.models.stack import SHARDING_ROWS, block_flops, block_parameters
from clip_jax.models.tower import Compute, ImageTower
from clip_jax.numerics import project
from clip_jax.registry import BelowOne, Count, Positive


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(ImageTower, group="vision."):
    """The image tower as a vision transformer (arXiv:2010.11929, as CLIP changed it)."""

    image_size: Count = 224  # pixels on each side
    patch_size: Count = 32  # pixels on each side
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    mlp_width: Count = 3072
    activation: Activation = "gelu"
    norm_epsilon: Positive = 1e-5
    class_token: bool = True
    pool: Literal["class", "mean", "map"] = "class"  # mean: of patches; map: attention (SigLIP)
    pool_before_norm: bool = False  # CLIPA pools, then normalises; CLIP does the reverse
    pre_norm: bool = True  # LayerNorm between the embeddings and the first block
    patch_bias: bool = False
    projection: bool = True  # SigLIP has none: its pooled vector is the embedding
    position: Literal["learned", "sincos2d"] = "learned"
    patch_dropout: BelowOne = 0.0  # share of patches dropped in training (FLIP, arXiv:2212.00794)

    above_blocks = ("post_norm", "pool", "projection")
    free_fields = ("image_size", "patch_dropout")
    positions_path = "position_embedding"
    sharding_rows = (
        *SHARDING_ROWS,
        ("pool/(query|key_value)/kernel", 0),
        ("pool/out/kernel", -1),
        ("pool/mlp/up/kernel", 0),
        ("pool/mlp/down/kernel", -1),
        ("projection/kernel", 0),
        ("position_embedding", -1),
        ("patch_embedding/kernel", -1),
    )

    def __post_init__(self):
        super().__post_init__()
        fits, most = self.patch_size <= self.image_size, self.image_size
        self.require(fits, "patch_size", f"must be from 1 to {most}, the image's size")
        self.require_multiple("width", "heads")
        pooled = self.pool != "class" or self.class_token
        self.require(pooled, "pool", "needs class_token=True")

    @property
    def fixed_embed_dim(self) -> int | None:
        return None if self.projection else self.width

    @property
    def grid(self) -> int:
        """Patches on each side. What is left of a last one is cropped (SigLIP's 384 by 14)."""
        return self.image_size // self.patch_size

    def module(self, embed_dim: int, compute: Compute) -> "VisionTransformer":
        return VisionTransformer(self, embed_dim, compute)

    def flops(self, embed_dim: int, *, train: bool = False) -> float:
        """With `train`, after patch dropout."""
        D, patches = self.width, self.grid**2
        # As many as `drop_patches` keeps; all of them are embedded before.
        kept = max(1, round(patches * (1 - self.patch_dropout))) if train else patches
        L = kept + self.class_token
        flops = 2 * patches * 3 * self.patch_size**2 * D + block_flops(self, L) * self.depth
        if self.pool == "map":
            # One query: keys and values of all patches, then the output and an MLP of one vector.
            flops += 2 * (2 * L * D * D + 2 * D * D + 2 * L * D + 2 * D * self.mlp_width)
        return flops + (2 * D * embed_dim if self.projection else 0)

    def parameter_count(self, embed_dim: int) -> int:
        D, F = self.width, self.mlp_width
        L = self.grid**2 + self.class_token
        count = 3 * self.patch_size**2 * D + block_parameters(self) * self.depth + 2 * D
        count += D * (self.class_token + self.patch_bias + 2 * self.pre_norm)
        count += L * D if self.position == "learned" else 0
        if self.pool == "map":
            count += D + 4 * (D + 1) * D + 2 * D + (D + 1) * F + (F + 1) * D
        return count + (D * embed_dim if self.projection else 0)

    def matrices_of(self, name: str) -> int:
        kinds = {"qkv": 3, "query": 1, "key_value": 2}  # side by side in one kernel
        found = re.fullmatch(".*/(qkv|query|key_value)/kernel", name)
        return kinds[found[1]] * self.heads if found else 1

    def resize(self, params: dict, old: "VisionTransformerConfig") -> dict:
        if self.grid == old.grid or self.position != "learned":
            return params
        position_LD = params["position_embedding"]
        resized_LD = resize_grid(position_LD, int(self.class_token), old.grid, self.grid)
        return params | {"position_embedding": resized_LD}

    def at_positions(self, count: int) -> "VisionTransformerConfig":
        grid = square_side(count - self.class_token)
        # A size that leaves a rest, such as 384 by 14, keeps it.
        size = self.image_size if grid == self.grid else grid * self.patch_size
        return dataclasses.replace(self, image_size=size)


class VisionTransformer(nn.Module):
    """Images (B, H, W, 3), normalised, to embeddings (B, E) and tokens (B, L, D).

    The embeddings are not yet of unit length. The tokens are the last block's outputs, before the
    last norm: the class token, if there is one, and the patches.
    """

    config: VisionTransformerConfig
    embed_dim: int
    compute: Compute

    @nn.compact
    def __call__(
        self, images_BHWC: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        D, dtype = cfg.width, self.compute.dtype
        small = nn.initializers.normal(D**-0.5)
        x_BLD = PatchEmbedding(D, cfg.patch_size, cfg.patch_bias, dtype, name="patch_embedding")(
            images_BHWC
        )
        # In float32 up to here, so that their gradients are summed over the batch in float32.
        if cfg.class_token:
            class_D = self.param("class_embedding", small, (D,))
            class_B1D = jnp.broadcast_to(class_D, (x_BLD.shape[0], 1, D))
            x_BLD = jnp.concatenate([class_B1D, x_BLD.astype(class_D.dtype)], axis=1)
        if cfg.position == "learned":
            position_LD = self.param("position_embedding", small, x_BLD.shape[1:])
        else:
            position_LD = sincos2d(cfg.grid, D, class_token=cfg.class_token)
        x_BLD = (x_BLD + position_LD[None]).astype(dtype)
        if train and cfg.patch_dropout:
            x_BLD = drop_patches(
                x_BLD, self.make_rng("dropout"), cfg.patch_dropout, class_token=cfg.class_token
            )
        norm = {"epsilon": cfg.norm_epsilon, "dtype": dtype}
        if cfg.pre_norm:
            x_BLD = LayerNorm(name="pre_norm", **norm)(x_BLD)
        blocks = transformer(cfg, self.compute, causal=False)
        post_norm = LayerNorm(name="post_norm", **norm)
        if cfg.pool == "class":
            x_BLD, x_BD = blocks(x_BLD, 0)
            x_BD = post_norm(x_BD)
        else:
            x_BLD = blocks(x_BLD)
            x_BD = self.pool(x_BLD, post_norm)
        if cfg.projection:
            x_BD = Dense(self.embed_dim, D**-0.5, dtype, use_bias=False, name="projection")(x_BD)
        return x_BD, x_BLD

    def pool(self, x_BLD: jax.Array, norm: LayerNorm) -> jax.Array:
        """One vector of all positions of an image."""
        cfg = self.config
        if cfg.pool == "map":
            return AttentionPool(cfg, self.compute.dtype, name="pool")(norm(x_BLD))
        first = int(cfg.class_token)
        if cfg.pool_before_norm:
            return norm(x_BLD[:, first:].mean(axis=1))
        return norm(x_BLD)[:, first:].mean(axis=1)


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its size, written as the matrix product that it is."""

    width: int
    patch_size: int
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images_BHWC: jax.Array) -> jax.Array:
        p = self.patch_size
        B, H, W, C = images_BHWC.shape
        H, W = H - H % p, W - W % p
        init = drawn_as_matrix(nn.initializers.normal((C * p * p) ** -0.5))
        kernel = self.param("kernel", init, (p, p, C, self.width))
        bias_D = None
        if self.use_bias:
            bias_D = self.param("bias", nn.initializers.zeros, (self.width,))
        patches_BLP = (
            images_BHWC[:, :H, :W]
            .reshape(B, H // p, p, W // p, p, C)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(B, (H // p) * (W // p), p * p * C)
        )
        kernel_PD = kernel.reshape(-1, self.width)
        return project(patches_BLP.astype(self.dtype), kernel_PD, bias_D)


class AttentionPool(nn.Module):
    """One learned query that attends to all patches, then an MLP (SigLIP, arXiv:2303.15343)."""

    config: VisionTransformerConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        cfg = self.config
        B, L, D = x_BLD.shape
        N, K = cfg.heads, D // cfg.heads
        std = D**-0.5
        probe_11D = self.param("probe", nn.initializers.normal(std), (1, 1, D))
        probe_B1D = jnp.broadcast_to(probe_11D, (B, 1, D))
        q_B1NK = Dense(D, std, self.dtype, name="query")(probe_B1D).reshape(B, 1, N, K)
        kv_BL2NK = Dense(2 * D, std, self.dtype, name="key_value")(x_BLD).reshape(B, L, 2, N, K)
        x_B1NK = plain_attention(q_B1NK, kv_BL2NK[:, :, 0], kv_BL2NK[:, :, 1], causal=False)
        x_B1D = Dense(D, std, self.dtype, name="out")(x_B1NK.reshape(B, 1, D))
        y_B1D = LayerNorm(cfg.norm_epsilon, self.dtype, name="norm")(x_B1D)
        x_B1D = x_B1D + Mlp(cfg.mlp_width, cfg.activation, std, std, self.dtype, name="mlp")(y_B1D)
        return x_B1D[:, 0]


def drop_patches(x_BLD: jax.Array, key: jax.Array, share: float, *, class_token: bool) -> jax.Array:
    """Keep a random subset of the patches of each image, and the class token (arXiv:2212.00794)."""
    first = int(class_token)
    B, L, _ = x_BLD.shape
    kept = max(1, round((L - first) * (1 - share)))
    order_BL = jnp.argsort(jax.random.uniform(key, (B, L - first)), axis=1)
    keep_BL = first + jnp.sort(order_BL[:, :kept], axis=1)
    patches_BLD = jnp.take_along_axis(x_BLD, keep_BL[:, :, None], axis=1)
    return jnp.concatenate([x_BLD[:, :first], patches_BLD], axis=1)


def sincos2d(grid: int, width: int, *, class_token: bool) -> np.ndarray:
    """Fixed sine-cosine position embeddings (grid * grid [+ 1], width), as in MAE (arXiv:2111.06377)."""
    quarter = width // 4
    frequency_Q = 1.0 / 10_000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    y_hw, x_hw = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    halves = []
    for place_hw in (x_hw, y_hw):
        angle_LQ = place_hw.reshape(-1, 1) * frequency_Q
        halves += [np.sin(angle_LQ), np.cos(angle_LQ)]
    position_LD = np.concatenate(halves, axis=1).astype(np.float32)
    if class_token:
        position_LD = np.concatenate([np.zeros((1, width), np.float32), position_LD])
    return position_LD

"""The text tower: token and position embeddings, a transformer, and the vector at one position."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from clip_jax.config import Activation
from clip_jax.models.layers import transformer
from clip_jax.models.linear import Dense
from clip_jax.models.normalization import LayerNorm
from clip_jax.models.stack import SHARDING_ROWS, block_flops, block_parameters
from clip_jax.models.tower import Compute, TextTower
from clip_jax.registry import Count, Positive, Whole


@dataclass(frozen=True, kw_only=True)
class TextConfig(TextTower, group="text."):
    """The text tower: a transformer over tokens, read at one position."""

    context_length: Count = 77  # tokens
    vocab_size: Count = 49_408
    width: Count = 512
    depth: Count = 12
    heads: Count = 8
    mlp_width: Count = 2048
    activation: Activation = "gelu"
    norm_epsilon: Positive = 1e-5
    causal: bool = True
    pool: Literal["argmax", "last", "eos"] = "argmax"  # argmax: at the largest id; eos: at end_id
    end_id: Whole | None = None  # of the token at whose first occurrence pool="eos" reads
    projection: bool = True  # False: the text is read as it is, so width is embed_dim
    projection_bias: bool = False

    above_blocks = ("post_norm", "projection")
    positions_path = "position_embedding"
    sharding_rows = (
        *SHARDING_ROWS,
        ("projection/kernel", 0),
        ("(token|position)_embedding", -1),
    )

    def __post_init__(self):
        super().__post_init__()
        self.require_multiple("width", "heads")
        if self.pool == "eos":
            fits, most = (
                self.end_id is not None and self.end_id < self.vocab_size,
                self.vocab_size - 1,
            )
            self.require(fits, "end_id", f'must be from 0 to {most}, as pool="eos" reads there')
        self.refuse_ignored(self.pool != "eos", "end_id", f'pool="{self.pool}" reads elsewhere')
        self.refuse_ignored(not self.projection, "projection_bias", "projection=False")

    @property
    def reads_largest_id(self) -> bool:
        return self.pool == "argmax"

    def read_length(self, tokens_BL: np.ndarray) -> int:
        """Up to the last end token: under a causal mask none sees what follows it."""
        if not self.causal or self.pool == "last" or not len(tokens_BL):
            return tokens_BL.shape[1]
        end_BL = tokens_BL == self.end_id if self.pool == "eos" else tokens_BL
        return int(end_BL.argmax(axis=1).max()) + 1

    @property
    def fixed_embed_dim(self) -> int | None:
        return None if self.projection else self.width

    def with_vocabulary(self, vocab_size: int, end_id: int) -> "TextConfig":
        end = {"end_id": end_id} if self.pool == "eos" else {}
        return dataclasses.replace(self, vocab_size=vocab_size, **end)

    def module(self, embed_dim: int, compute: Compute) -> "TextTransformer":
        return TextTransformer(self, embed_dim, compute)

    def flops(self, embed_dim: int, *, train: bool = False) -> float:
        """Every position counts, in the last block too."""
        del train
        blocks = block_flops(self, self.context_length) * self.depth
        return blocks + (2 * self.width * embed_dim if self.projection else 0)

    def parameter_count(self, embed_dim: int) -> int:
        tokens = (self.vocab_size + self.context_length) * self.width
        count = tokens + block_parameters(self) * self.depth + 2 * self.width
        projection = (self.width + self.projection_bias) * embed_dim
        return count + (projection if self.projection else 0)

    def matrices_of(self, name: str) -> int:
        return 3 * self.heads if name.endswith("attention/qkv/kernel") else 1

    def resize(self, params: dict, old: "TextConfig") -> dict:
        if self.context_length == old.context_length:
            return params
        position_LD = jnp.asarray(params["position_embedding"])
        shape = (self.context_length, position_LD.shape[1])
        position_LD = jax.image.resize(position_LD, shape, "linear", antialias=False)
        return params | {"position_embedding": position_LD}

    def at_positions(self, count: int) -> "TextConfig":
        return dataclasses.replace(self, context_length=count)


class TextTransformer(nn.Module):
    """Token ids (B, L), int32, to embeddings (B, E) and tokens (B, L, D).

    The embeddings are not yet of unit length. The tokens are the last block's outputs, before the
    last norm.
    """

    config: TextConfig
    embed_dim: int
    compute: Compute

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        cfg = self.config
        D, L, dtype = cfg.width, tokens_BL.shape[1], self.compute.dtype
        embedding_VD = self.param(
            "token_embedding", nn.initializers.normal(0.02), (cfg.vocab_size, D)
        )
        position_LD = self.param(
            "position_embedding", nn.initializers.normal(0.01), (cfg.context_length, D)
        )
        # An index alone would clamp or wrap ids that are not in the table, and these may be traced.
        embedding_VD = jnp.asarray(embedding_VD)  # NumPy's have no `at`
        x_BLD = embedding_VD.at[tokens_BL].get(
            mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
        )
        # Added in float32, so that the positions' gradient is summed over the batch in float32.
        x_BLD = (x_BLD + position_LD[None, :L]).astype(dtype)
        if cfg.pool == "argmax":
            # The end token has the largest id, so argmax finds its position.
            read = tokens_BL.argmax(axis=-1)
        elif cfg.pool == "eos":
            read = (tokens_BL == cfg.end_id).argmax(axis=-1)
        else:
            read = L - 1
        x_BLD, x_BD = transformer(cfg, self.compute, causal=cfg.causal)(x_BLD, read)
        x_BD = LayerNorm(cfg.norm_epsilon, dtype, name="post_norm")(x_BD)
        if not cfg.projection:
            return x_BD, x_BLD
        x_BE = Dense(
            self.embed_dim, D**-0.5, dtype, use_bias=cfg.projection_bias, name="projection"
        )(x_BD)
        return x_BE, x_BLD

"""The text tower: token and position embeddings, a transformer, and the vector at one position."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from clip_jax.config import AttentionKind, Remat, TextConfig
from clip_jax.models.layers import LayerNorm, Transformer, identity
from clip_jax.models.linear import Dense


class TextTransformer(nn.Module):
    """Tokens (B, L), int32, to embeddings (B, E), not yet of unit length."""

    config: TextConfig
    embed_dim: int
    dtype: jnp.dtype
    remat: Remat = "none"
    attention: AttentionKind = "auto"
    unroll: int = 1
    constrain: Callable[[jax.Array], jax.Array] = identity

    @nn.compact
    def __call__(self, tokens_BL: jax.Array, *, train: bool = False) -> jax.Array:
        cfg = self.config
        D, L = cfg.width, tokens_BL.shape[1]
        embedding_VD = self.param(
            "token_embedding", nn.initializers.normal(0.02), (cfg.vocab_size, D)
        )
        position_LD = self.param(
            "position_embedding", nn.initializers.normal(0.01), (cfg.context_length, D)
        )
        # Added in float32, so that the positions' gradient is summed over the batch in float32.
        x_BLD = (embedding_VD[tokens_BL] + position_LD[:L]).astype(self.dtype)
        x_BLD = Transformer(
            depth=cfg.depth,
            heads=cfg.heads,
            mlp_width=cfg.mlp_width,
            activation=cfg.activation,
            norm_epsilon=cfg.norm_epsilon,
            causal=cfg.causal,
            kind=self.attention,
            remat=self.remat,
            dtype=self.dtype,
            unroll=self.unroll,
            constrain=self.constrain,
            name="transformer",
        )(x_BLD)
        if cfg.pool == "argmax":
            # The end token has the largest id, so argmax finds its position.
            last_B = tokens_BL.argmax(axis=-1)
        elif cfg.pool == "eos":
            last_B = (tokens_BL == cfg.end_id).argmax(axis=-1)
        else:
            last_B = jnp.full(tokens_BL.shape[0], L - 1)
        x_BD = jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)[:, 0]
        x_BD = LayerNorm(cfg.norm_epsilon, self.dtype, name="post_norm")(x_BD)
        if not cfg.projection:
            return x_BD
        return Dense(
            self.embed_dim, D**-0.5, self.dtype, use_bias=cfg.projection_bias, name="projection"
        )(x_BD)

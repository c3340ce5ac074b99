"""How large an architecture is and what it costs, from its config alone."""

import dataclasses
import math
from collections.abc import Sequence

import jax

from clip_jax.config import ModelConfig
from clip_jax.models.clip import abstract_inputs, compute_of
from clip_jax.models.tower import Head, Tower


def parameter_count(config: ModelConfig) -> int:
    """Parameters of a model, the temperature and the bias included, batch statistics not."""
    scalars = 1 + (config.init_logit_bias is not None)
    inputs = abstract_inputs(config)
    counts = [
        _parameters(tower, config, x)
        for tower, x in zip(config.towers.values(), inputs, strict=True)
    ]
    return sum(counts) + scalars


def _parameters(tower: Tower, config: ModelConfig, inputs: jax.ShapeDtypeStruct) -> int:
    known = tower.parameter_count(config.embed_dim)
    if known is not None:
        return known
    module = tower.module(config.embed_dim, compute_of(config))
    shapes = jax.eval_shape(module.init, jax.random.key(0), inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def forward_flops(config: ModelConfig) -> float:
    """Floating-point operations of the forward pass of one image and one text.

    A multiplication and an addition are two. Matrix products and convolutions are counted, and
    nothing else: what a model flops utilisation is stated in.
    """
    return sum(tower.flops(config.embed_dim) for tower in config.towers.values())


def training_flops(
    config: ModelConfig,
    *,
    frozen: tuple[str, ...] = (),
    unlocked_blocks: int = 0,
    heads: Sequence[Head] = (),
) -> float:
    """Floating-point operations of a train step for one image and one text.

    A backward pass costs two forward ones; a tower that `frozen` names ("image", "text") has one
    of its last `unlocked_blocks` alone.
    What rematerialisation and accumulation compute a second time does not count, and what the last
    block leaves out, where one position is read, does: the figure is of the model, so that spending
    less on the same step shows as a higher utilisation.
    """
    total = sum((1.0 if head.frozen else 3.0) * head.flops(config) for head in heads)
    for name, tower in config.towers.items():
        if name in frozen:
            total += tower.flops(config.embed_dim)
            if unlocked_blocks:
                total += 2 * unlocked_blocks * _block_flops(tower, config.embed_dim)
        else:
            total += 3 * tower.flops(config.embed_dim, train=True)
    return total


def _block_flops(tower: Tower, embed_dim: int) -> float:
    """Forward FLOPs of one of a tower's blocks: a tower of twice the depth costs so much more."""
    deeper = dataclasses.replace(tower, depth=2 * tower.depth)
    return (deeper.flops(embed_dim) - tower.flops(embed_dim)) / tower.depth

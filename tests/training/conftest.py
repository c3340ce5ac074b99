"""Train steps that compile in a moment, of a CLIP that is two matrices and of a real one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clip_jax import sharding
from clip_jax.config import DataConfig, OptimizerConfig, TrainConfig
from clip_jax.models.clip import CLIP, Outputs, create_model, init_variables, unit_length
from clip_jax.training.setup import make_run_optimizer
from clip_jax.training.state import abstract_state, new_state
from clip_jax.training.step import abstract_batch, jit_train_step

B = 32
# A first token that spoils the batch: its loss, its gradient alone, or the gradient's size.
LOSS_IS_NAN, GRADIENT_IS_NAN, GRADIENT_IS_HUGE = 61, 62, 63


class Projection(nn.Module):
    """A tower of one matrix."""

    @nn.compact
    def __call__(self, x_BD):
        return unit_length(nn.Dense(16, use_bias=False, name="projection")(x_BD))


class Fragile(nn.Module):
    """A CLIP of two matrices with batch statistics, which a batch can break on purpose."""

    config, heads = create_model("ViT-test").config, ()

    @nn.compact
    def __call__(self, images_BHWC, tokens_BL, *, train=False, frozen=()):
        del frozen
        mean = self.variable("batch_stats", "mean", jnp.zeros, (3,))
        if train and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * images_BHWC.mean(axis=(0, 1, 2))
        x_BD = images_BHWC.reshape(len(images_BHWC), -1) / 255 - 0.5
        words_BV = jax.nn.one_hot(tokens_BL, 64).sum(axis=1)
        fault = tokens_BL[0, 0]
        scale = self.param("logit_scale", nn.initializers.constant(2.7), ())
        zero = 0 * scale  # its square root is 0, and has no derivative
        broken = 0 * jnp.sqrt(jnp.where(fault == GRADIENT_IS_NAN, zero, 1 + zero))
        words_BV = words_BV * jnp.where(fault == LOSS_IS_NAN, jnp.nan, 1) + broken
        z_image_BE, z_text_BE = Projection(name="image")(x_BD), Projection(name="text")(words_BV)
        factor = jnp.where(fault == GRADIENT_IS_HUGE, 1e4, 1.0)
        still_BE = jax.lax.stop_gradient(z_image_BE)
        return Outputs(
            image=still_BE + factor * (z_image_BE - still_BE),
            text=z_text_BE,
            logit_scale=jnp.exp(scale),
            logit_bias=None,
        )


@pytest.fixture(scope="session")
def fragile() -> Fragile:
    return Fragile()


@pytest.fixture(scope="session")
def draw():
    """`draw(model)`: its variables, from NumPy, as compiling an initialiser takes seconds."""

    def make(model) -> dict:
        shapes = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
        rng = np.random.default_rng(0)

        def values(path, leaf):
            name = sharding.path_name(path)
            if name.endswith("logit_scale"):
                return np.float32(2.7)
            if name.endswith(("scale", "var")):
                return np.ones(leaf.shape, np.float32)
            fan_in = leaf.shape[-2] if leaf.ndim > 1 else 400
            # As wide as before attention's kernels were flat: the axis of heads, and of a head.
            for ending, count in (("qkv/kernel", 2), ("attention/out/kernel", 16)):
                fan_in = count if name.endswith(ending) else fan_in
            return (rng.normal(size=leaf.shape) * fan_in**-0.5).astype(np.float32)

        return jax.tree_util.tree_map_with_path(values, shapes)

    return make


@pytest.fixture
def batch():
    """`batch(mesh, seed)`: a global batch of pixels and tokens; `first` is its first token."""

    def make(mesh, seed: int = 0, first: int | None = None, size: int = 16) -> dict:
        rng = np.random.default_rng(seed)
        images_BHWC = rng.integers(0, 256, (B, size, size, 3), np.uint8)
        tokens_BL = rng.integers(1, 60, (B, 8), np.int32)
        if first is not None:
            tokens_BL[0, 0] = first
        arrays = {"image": images_BHWC, "tokens": tokens_BL}
        return jax.device_put(arrays, sharding.batch_sharding(mesh))

    return make


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A train step and what it starts from; `state()` gives a new copy, as a step uses it up."""

    step: Callable
    shardings: Any
    first: Any

    def state(self, **changes):
        return jax.device_put(
            jax.tree.map(np.array, self.first.replace(**changes)), self.shardings, may_alias=False
        )


@pytest.fixture(scope="session")
def compiled(draw):
    """`compiled(mesh, model, **settings)` makes the train step of a run of 20 steps."""

    def make(mesh, model, /, **settings) -> Compiled:
        settings.setdefault("optimizer", OptimizerConfig(learning_rate=1e-2, warmup_steps=2))
        cfg = TrainConfig(steps=20, data=DataConfig(batch_size=B), **settings)
        if isinstance(model, CLIP):
            model = CLIP(model.config, constrain=sharding.constrain_batch(mesh))
        optimizer = make_run_optimizer(cfg, model.config)
        ema = cfg.optimizer.ema_decay is not None
        parts = {
            "model": model,
            "optimizer": optimizer,
            "ema": ema,
            "freeze": cfg.model.freeze,
            "unlocked_blocks": cfg.model.unlocked_blocks,
        }
        zero = cfg.optimizer.shard_over_data
        abstract = abstract_state(mesh, shard_over_data=zero, **parts)
        step = jit_train_step(mesh, abstract, model=model, optimizer=optimizer, cfg=cfg)
        lowered = step.lower(abstract, abstract_batch(mesh, model, B))
        return Compiled(
            step=lowered.compile(),
            shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
            first=jax.device_get(new_state(jax.random.key(0), variables=draw(model), **parts)),
        )

    return make

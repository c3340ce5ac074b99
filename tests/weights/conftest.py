"""Small models of every family, and their random variables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import ModelConfig
from clip_jax.models.architectures import clipa, model_config
from clip_jax.models.clip import CLIP
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig

IMAGE = {"image_size": 16, "patch_size": 8, "width": 32, "depth": 2, "heads": 2, "mlp_width": 48}
TEXT = {"context_length": 6, "vocab_size": 50, "width": 16, "depth": 3, "heads": 2, "mlp_width": 40}


def make_configs() -> dict[str, ModelConfig]:
    plain = ModelConfig(
        name="plain",
        embed_dim=8,
        vision=VisionTransformerConfig(**IMAGE),
        text=TextConfig(**TEXT),
    )
    base = model_config("ViT-B-16-SigLIP2")
    siglip = dataclasses.replace(
        base,
        name="siglip",
        embed_dim=32,
        vision=dataclasses.replace(base.vision, **IMAGE, activation="gelu_tanh"),
        text=dataclasses.replace(base.text, **TEXT),
    )
    resnet = ResNetConfig(image_size=32, width=8, depths=(1, 2, 1, 1), heads=4)
    return {
        "plain": plain,
        "clipa": dataclasses.replace(clipa(8, IMAGE, TEXT), name="clipa"),
        "resnet": dataclasses.replace(plain, name="resnet", vision=resnet),
        "siglip": siglip,
    }


@pytest.fixture(scope="session")
def configs():
    return make_configs()


@pytest.fixture(scope="session")
def variables(configs):
    return {name: make_variables(config) for name, config in configs.items()}


@pytest.fixture(scope="session")
def random_variables():
    return make_variables


def make_variables(config: ModelConfig) -> dict:
    """Variables in which no two numbers are alike, so that nothing can be swapped unseen."""
    size = config.vision.image_size
    shapes = jax.eval_shape(
        CLIP(config).init,
        jax.random.key(0),
        jnp.zeros((1, size, size, 3)),
        jnp.zeros((1, config.text.context_length), jnp.int32),
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float32)), shapes
    )

"""Tests of parameter and FLOP counts."""

import math
import types

import jax
import jax.numpy as jnp
import pytest

from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.models.flops import forward_flops, parameter_count, training_flops
from clip_jax.models.towers.vision_transformer import drop_patches

NAMES = ["ViT-test", "RN-test", "ViT-B-32", "RN50x4", "ViT-L-14-CLIPA", "ViT-SO400M-14-SigLIP-384"]


def flops(config, tower: str, **kwargs) -> float:
    return config.towers[tower].flops(config.embed_dim, **kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_that_the_model_makes(name):
    config = model_config(name)
    size, length = config.vision.image_size, config.text.context_length
    variables = jax.eval_shape(
        CLIP(config).init,
        jax.random.key(0),
        jnp.zeros((1, size, size, 3)),
        jnp.zeros((1, length), int),
    )
    made = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert parameter_count(config) == made


# Millions of parameters and GFLOP of a forward pass, as open_clip's docs/model_profile.csv has them.
@pytest.mark.parametrize(
    "name,parameters,flops",
    [
        ("RN50", 102.01, 18.18),
        ("RN101-quickgelu", 119.69, 25.5),
        ("RN50x4", 178.3, 51.82),
        ("RN50x16", 290.98, 162.69),
        ("RN50x64", 623.26, 552.65),
        ("ViT-S-16-alt", 42.4, 10.47),
        ("ViT-M-32", 103.12, 9.95),
        ("ViT-B-32", 151.28, 14.78),
        ("ViT-B-16-plus-240", 208.38, 64.03),
        ("ViT-L-14-336", 427.94, 395.22),
        ("ViT-H-14", 986.11, 381.68),
        ("ViT-g-14", 1366.68, 581.15),
        ("ViT-e-14", 4581.09, 2091.45),
        ("ViT-bigG-14", 2539.57, 1065.36),
        ("ViT-L-14-CLIPA", 414.21, 167.5),
        ("ViT-bigG-14-CLIPA-336", 2517.76, 2271.58),
        ("ViT-B-16-SigLIP", 203.16, 46.44),
        ("ViT-B-16-SigLIP-i18n-256", 370.63, 57.84),
        ("ViT-L-16-SigLIP-384", 652.48, 422.91),
        ("ViT-SO400M-14-SigLIP", 877.36, 233.54),
        ("ViT-SO400M-14-SigLIP-384", 877.96, 723.48),
    ],
)
def test_figures_agree_with_the_published_ones(name, parameters, flops):
    config = model_config(name)
    assert parameter_count(config) / 1e6 == pytest.approx(parameters, abs=0.01)
    assert forward_flops(config) / 1e9 == pytest.approx(flops, rel=0.04)


def test_a_train_step_costs_three_forward_passes_and_a_frozen_tower_one():
    config = model_config("ViT-B-32")
    image, text = flops(config, "image"), flops(config, "text")
    assert training_flops(config) == 3 * forward_flops(config)
    assert training_flops(config, frozen=("image",)) == image + 3 * text
    assert training_flops(config, frozen=("text",)) == 3 * image + text
    decoder = types.SimpleNamespace(frozen=False, flops=lambda config: 1e9)
    teacher = types.SimpleNamespace(frozen=True, flops=lambda config: 1e8)
    beside = training_flops(config, heads=(decoder, teacher)) - training_flops(config)
    assert beside == pytest.approx(3e9 + 1e8)


def test_unlocked_blocks_of_a_frozen_tower_cost_three_forward_passes():
    config = model_config("ViT-B-32")
    frozen, all_blocks = (
        training_flops(config, frozen=("image",), unlocked_blocks=blocks) for blocks in (0, 12)
    )
    embedding, head = 2 * 49 * 3 * 32**2 * 768, 2 * 768 * 512
    assert all_blocks == pytest.approx(training_flops(config) - 2 * (embedding + head))
    third = training_flops(config, frozen=("image",), unlocked_blocks=4)
    assert third - frozen == pytest.approx((all_blocks - frozen) / 3)


def test_what_is_computed_twice_does_not_count():
    assert training_flops(model_config("ViT-B-32", remat="full")) == training_flops(
        model_config("ViT-B-32")
    )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.99])
def test_dropped_patches_cost_nothing_but_their_embedding(share):
    config = model_config("ViT-B-16", patch_dropout=share)
    L = config.vision.grid**2 + 1
    x_BLD = jax.ShapeDtypeStruct((1, L, 8), jnp.float32)
    kept = jax.eval_shape(
        lambda x, key: drop_patches(x, key, share, class_token=True), x_BLD, jax.random.key(0)
    ).shape[1]
    D, F = config.vision.width, config.vision.mlp_width
    block = 2 * (4 * kept * D * D + 2 * kept * kept * D + 2 * kept * D * F)
    others = 2 * (L - 1) * 3 * 16**2 * D + 2 * D * config.embed_dim
    assert flops(config, "image", train=True) == pytest.approx(12 * block + others)
    assert flops(config, "image") == flops(model_config("ViT-B-16"), "image")
    frozen = training_flops(config, frozen=("image",))
    assert frozen == flops(config, "image") + 3 * flops(config, "text")


def test_shorter_captions_cost_less():
    short, long = (model_config("ViT-B-32", context_length=length) for length in (32, 77))
    assert flops(short, "text") < flops(long, "text") * 32 / 77
    assert flops(short, "image") == flops(long, "image")

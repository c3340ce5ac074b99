"""Embeddings and logits of open_clip and transformers, with the same weights."""

import dataclasses

import jax
import numpy as np
import open_clip
import optax
import parity
import pytest
import torch

from clip_jax.config import ModelConfig
from clip_jax.models.architectures import clipa, model_config, quick
from clip_jax.models.clip import CLIP
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights import open_clip as names
from clip_jax.weights import open_clip_config
from clip_jax.weights.mapping import import_variables
from clip_jax.weights.position_embeddings import resize

IMAGE = {"image_size": 48, "patch_size": 16, "width": 64, "depth": 3, "heads": 2, "mlp_width": 160}
TEXT = {
    "context_length": 12,
    "vocab_size": 99,
    "width": 64,
    "depth": 2,
    "heads": 4,
    "mlp_width": 256,
}
PLAIN = ModelConfig(
    name="plain",
    embed_dim=32,
    vision=VisionTransformerConfig(**IMAGE),
    text=TextConfig(**TEXT),
)
RESNET = dataclasses.replace(
    PLAIN, vision=ResNetConfig(image_size=64, width=16, depths=(1, 2, 1, 1), heads=8)
)
# timm's names stand for whole towers, so SigLIP's is of full size, over a small vocabulary.
SIGLIP = model_config("ViT-B-32-SigLIP2-256", vocab_size=99)
SMALL_SIGLIP = dataclasses.replace(
    SIGLIP,
    embed_dim=64,
    vision=dataclasses.replace(SIGLIP.vision, **IMAGE),
    text=dataclasses.replace(SIGLIP.text, **TEXT),
)
CONFIGS = {
    "vit": PLAIN,
    "quickgelu": quick(PLAIN),
    "bias": dataclasses.replace(PLAIN, init_logit_bias=-10.0),
    "mean": dataclasses.replace(PLAIN, vision=dataclasses.replace(PLAIN.vision, pool="mean")),
    "clipa": clipa(32, IMAGE, TEXT),
    "resnet": RESNET,
    "siglip": SIGLIP,
}


def check(found: parity.Difference):
    assert max(found.image, found.text) <= 1e-5
    assert found.logits <= 1e-4
    assert found.same_bits


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_and_logits_are_open_clips(name):
    check(parity.against_open_clip(CONFIGS[name]))


def test_a_resnet_in_training_uses_the_statistics_of_the_batch():
    check(parity.against_open_clip(RESNET, train=True))


@pytest.mark.parametrize("config", [quick(PLAIN), PLAIN, SMALL_SIGLIP])
def test_embeddings_and_logits_are_those_of_transformers(config):
    check(parity.against_transformers(config))


def reference(config: ModelConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return open_clip.model.CLIP(**open_clip_config.write_config(config)["model_cfg"])


def imported(model: torch.nn.Module, config: ModelConfig) -> dict:
    return import_variables(
        config,
        names.links(config),
        parity.TorchTensors(model),
        ignored=names.is_no_weight,
        source="the reference",
    )


@pytest.mark.parametrize("image_size,context_length", [(80, 12), (32, 12), (48, 20), (48, 7)])
def test_positions_are_resized_as_open_clip_resizes_them(image_size, context_length):
    model = reference(PLAIN)
    larger = dataclasses.replace(
        PLAIN,
        vision=dataclasses.replace(PLAIN.vision, image_size=image_size),
        text=dataclasses.replace(PLAIN.text, context_length=context_length),
    )
    state = model.state_dict()
    open_clip.model.resize_pos_embed(state, reference(larger))
    open_clip.model.resize_text_pos_embed(state, reference(larger))
    resized = resize(imported(model, PLAIN), PLAIN, larger)["params"]
    for tower, name in (("image", "visual.positional_embedding"), ("text", "positional_embedding")):
        np.testing.assert_allclose(
            resized[tower]["position_embedding"], state[name].numpy(), atol=1e-6
        )


def test_the_first_loss_of_fine_tuning_and_its_gradient_are_the_references():
    model = reference(PLAIN)
    variables = imported(model, PLAIN)
    images_BHWC, tokens_BL = parity.inputs(PLAIN, batch=6)

    @jax.value_and_grad
    def loss(params):
        out = CLIP(PLAIN).apply({"params": params}, images_BHWC, tokens_BL, train=True)
        logits_BB = out.logit_scale * out.image @ out.text.T
        labels_B = np.arange(len(images_BHWC))
        both = [logits_BB, logits_BB.T]
        losses = optax.softmax_cross_entropy_with_integer_labels
        return sum(losses(logits, labels_B).mean() for logits in both) / 2

    ours, gradient = loss(variables["params"])
    model.train()
    image, text, scale = model(
        torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), torch.from_numpy(tokens_BL).long()
    )
    theirs = open_clip.ClipLoss()(image, text, scale)
    theirs.backward()
    assert abs(float(ours) - theirs.item()) <= 1e-4
    np.testing.assert_allclose(
        gradient["image"]["projection"]["kernel"], model.visual.proj.grad.numpy(), atol=1e-5
    )
    np.testing.assert_allclose(
        float(gradient["logit_scale"]), model.logit_scale.grad.item(), rtol=1e-4, atol=1e-6
    )

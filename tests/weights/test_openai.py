"""Tests of OpenAI's names."""

from clip_jax.models.architectures import model_config
from clip_jax.weights import open_clip, openai


def names(config):
    return {link.theirs for link in open_clip.links(config)}


def test_a_vision_transformer_has_openais_names():
    found = names(model_config("ViT-B-32-quickgelu"))
    # As in the state dict of ViT-B/32 that OpenAI released: 302 tensors beside three numbers.
    assert len(found) == 302
    assert {"visual.class_embedding", "visual.conv1.weight", "visual.proj", "text_projection",
            "visual.transformer.resblocks.11.attn.in_proj_weight", "ln_final.bias",
            "transformer.resblocks.0.mlp.c_proj.bias", "logit_scale"} <= found  # fmt: skip


def test_a_resnet_has_openais_names():
    config = model_config("RN50-quickgelu")
    found = names(config)
    assert {"visual.bn3.running_var", "visual.layer4.2.conv3.weight", "visual.attnpool.c_proj.bias",
            "visual.layer1.0.downsample.0.weight", "visual.layer1.0.downsample.1.bias",
            "visual.attnpool.positional_embedding"} <= found  # fmt: skip
    assert "visual.layer1.1.downsample.0.weight" not in found
    counters = openai.batch_counters(open_clip.links(config))
    assert len(counters) == sum(name.endswith("running_mean") for name in found) == 55
    assert all(openai.is_no_weight(name) for name in counters)


def test_layers_are_counted():
    found = ["a.0.x", "a.0.y", "a.10.x", "b.0.x", "a.final"]
    assert openai.depth_of(found, "a.") == 2
    assert openai.depth_of(found, "c.") == 0

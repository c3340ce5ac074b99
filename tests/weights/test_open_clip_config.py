"""Tests of open_clip_config.json."""

import dataclasses
import json
import logging

import pytest

from clip_jax.models.architectures import ARCHITECTURES, model_config
from clip_jax.weights.open_clip_config import read_config, write_config

# Their tokenizer cannot be told from a config alone.
EXPRESSIBLE = [name for name in ARCHITECTURES if "test" not in name and "tiny" not in name]


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_every_architecture_is_read_back_as_it_was_written(name):
    config = model_config(name)
    written = json.loads(json.dumps(write_config(config)))
    read = read_config(written, source="a file", name=name)
    same = {"tokenizer": config.tokenizer, "init_logit_scale": config.init_logit_scale}
    assert dataclasses.replace(read, **same) == config


def test_open_clips_own_config_is_read():
    content = {
        "model_cfg": {
            "embed_dim": 1024,
            "vision_cfg": {
                "image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14,
            },
            "text_cfg": {
                "context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24,
            },
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25] * 3, "fill_color": 3},
    }  # fmt: skip
    config = read_config(content, source="a file", name="ViT-H-14")
    known = model_config("ViT-H-14")
    assert (config.vision, config.text) == (known.vision, known.text)
    assert config.preprocess.mean == (0.5, 0.5, 0.5)
    assert config.preprocess.fill == 3


def test_timms_activation_is_part_of_its_name():
    def activation(name, width):
        content = write_config(model_config("ViT-B-16-SigLIP"))
        content["model_cfg"]["embed_dim"] = width
        content["model_cfg"]["vision_cfg"] = {
            "timm_model_name": name, "image_size": 224, "timm_pool": "map", "timm_proj": "none",
        }  # fmt: skip
        return read_config(content, source="a file", name="x").vision.activation

    assert activation("vit_base_patch16_siglip_224", 768) == "gelu"
    assert activation("vit_so400m_patch16_siglip_256", 1152) == "gelu_tanh"


def test_another_activation_than_timms_is_said(caplog):
    config = model_config("ViT-B-16-SigLIP")
    tanh = dataclasses.replace(config.vision, activation="gelu_tanh")
    with caplog.at_level(logging.WARNING):
        write_config(dataclasses.replace(config, vision=tanh))
    assert "vit_base_patch16_siglip_224 with gelu" in caplog.text


@pytest.mark.parametrize(
    "part,changes,word",
    [
        ("vision_cfg", {"ls_init_value": 1e-4}, "ls_init_value"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name"),
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "convnext_base"),
        ("text_cfg", {"pool_type": "first"}, "pool_type is 'first'"),
    ],
)
def test_what_this_package_has_not_is_named(part, changes, word):
    content = write_config(model_config("ViT-B-32"))
    content["model_cfg"][part] |= changes
    with pytest.raises(ValueError, match=f"a file.*{word}"):
        read_config(content, source="a file", name="x")


@pytest.mark.parametrize(
    "changes", [{"position": "sincos2d"}, {"patch_bias": True}, {"activation": "quick_gelu"}]
)
def test_what_open_clip_has_not_is_named(changes):
    config = model_config("ViT-B-32")
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **changes))
    with pytest.raises(ValueError, match="open_clip has no"):
        write_config(config)


@pytest.mark.parametrize("changes", [{"interpolation": "nearest"}, {"resize_size": 256}])
def test_preprocessing_that_open_clip_has_not_is_named(changes):
    config = model_config("ViT-B-32")
    changed = dataclasses.replace(config.preprocess, **changes)
    with pytest.raises(ValueError, match=f"open_clip has no.*{next(iter(changes))}"):
        write_config(dataclasses.replace(config, preprocess=changed))

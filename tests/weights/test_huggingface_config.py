"""Tests of Hugging Face's config files."""

import dataclasses
import json

import pytest

from clip_jax.models.architectures import model_config
from clip_jax.weights.config_values import Section
from clip_jax.weights.huggingface_config import read_config, write_config
from clip_jax.weights.huggingface_preprocess import read_preprocess, write_preprocess

NAMES = ["ViT-B-32-quickgelu", "ViT-L-14-336", "ViT-H-14", "ViT-B-16-SigLIP2",
         "ViT-gopt-16-SigLIP2-384"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_is_read_back_as_it_was_written(name):
    config = model_config(name)
    content = json.loads(json.dumps(write_config(config)))
    read = read_config(content, source="a file", name=name)
    pixels = json.loads(json.dumps(write_preprocess(config)))
    read = dataclasses.replace(read, preprocess=read_preprocess(Section(pixels, "a file"), read))
    # The file does not say how a crop is rounded, and its library rounds it down.
    crops = "crop_size" in pixels
    offset = "floor" if crops else config.preprocess.crop_offset
    preprocess = dataclasses.replace(config.preprocess, crop_offset=offset)
    expected = dataclasses.replace(config, preprocess=preprocess)
    assert dataclasses.replace(read, init_logit_scale=config.init_logit_scale) == expected


def test_what_a_config_leaves_out_is_the_librarys_default():
    config = read_config({"model_type": "clip"}, source="a file", name="x")
    known = model_config("ViT-B-32-quickgelu")
    assert (config.vision, config.text) == (known.vision, known.text)
    config = read_config({"model_type": "siglip"}, source="a file", name="x")
    assert config.vision.patch_size == 16
    assert config.text.activation == "gelu_tanh"


def test_old_files_keep_their_differences_elsewhere():
    old, new = {"patch_size": 16}, {"patch_size": 14, "hidden_act": "gelu"}
    content = {"vision_config_dict": old, "vision_config": new, "text_config_dict": None}
    found = read_config(content | {"model_type": "clip"}, source="a file", name="x").vision
    assert (found.patch_size, found.activation) == (16, "quick_gelu")  # which is the default
    found = read_config(content | {"model_type": "siglip"}, source="a file", name="x").vision
    assert (found.patch_size, found.activation) == (14, "gelu")


@pytest.mark.parametrize(
    "content,word",
    [
        ({"model_type": "blip"}, "blip"),
        ({"model_type": ["clip"]}, "model_type"),
        ({"model_type": "clip", "text_config": {"num_hidden_layers": 10**9}}, "from 1 to 1000"),
        ({"model_type": "clip", "vision_config": {"hidden_size": 2**70}}, "hidden_size"),
        ({"model_type": "clip", "vision_config": {"image_size": 10**7}}, "image_size"),
        ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, "relu"),
        ({"model_type": "siglip", "vision_config": {"vision_use_head": False}}, "vision_use_head"),
    ],
)
def test_what_this_package_has_not_is_named(content, word):
    with pytest.raises(ValueError, match=word):
        read_config(content, source="a file", name="x")


@pytest.mark.parametrize(
    "name,word", [("RN50", "has no tower resnet"), ("ViT-L-14-CLIPA", "export to open_clip")]
)
def test_what_transformers_has_not_is_sent_elsewhere(name, word):
    with pytest.raises(ValueError, match=word):
        write_config(model_config(name))
    bias = dataclasses.replace(model_config("ViT-B-32"), init_logit_bias=-10.0)
    with pytest.raises(ValueError, match="bias"):
        write_config(bias)

"""Tests of the registry."""

import pytest

from clip_jax.config import ModelConfig
from clip_jax.models.architectures import ARCHITECTURES, model_config


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_carries_its_own_name(name):
    config = model_config(name)
    assert isinstance(config, ModelConfig)
    assert config.name == name


def test_openais_spelling_is_understood():
    assert model_config("ViT-B/32") == model_config("ViT-B-32")
    assert model_config("ViT-L/14@336px") == model_config("ViT-L-14-336")


def test_openais_nine_have_its_activation():
    names = [name.removesuffix("-quickgelu") for name in ARCHITECTURES if "quickgelu" in name]
    assert len(names) == 14  # and of others that took it over
    for name in names:
        plain, quick = model_config(name), model_config(f"{name}-quickgelu")
        assert (plain.text.activation, quick.text.activation) == ("gelu", "quick_gelu")
        assert plain.vision.image_size == quick.vision.image_size


@pytest.mark.parametrize("name,near", [("ViT-B-31", "ViT-B-32"), ("RN5", "RN50"), ("siglip", "")])
def test_an_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(ValueError, match=f'"{name}".*{near}'):
        model_config(name)


def test_fields_of_the_model_and_of_its_towers_can_be_changed():
    config = model_config("ViT-B-32", image_size=256, vocab_size=1000, dtype="bfloat16")
    assert config.vision.image_size == 256
    assert config.text.vocab_size == 1000
    assert config.dtype == "bfloat16"
    with pytest.raises(ValueError, match="image_size"):
        model_config("ViT-B-32", imagesize=256)

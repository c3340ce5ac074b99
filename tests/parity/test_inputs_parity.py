"""Pixels of open_clip's transforms and ids of its tokenizer."""

import dataclasses

import parity
import pytest
from parity_inputs import image_files

from clip_jax.config import PreprocessConfig

FILES = image_files()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_evaluation_pixels_are_open_clips(name, mode):
    preprocess = dataclasses.replace(PreprocessConfig(), resize_mode=mode)
    assert parity.pixel_difference(FILES[name], preprocess) == 0


@pytest.mark.parametrize("name", [name for name in FILES if "CMYK" not in name and name != "GIF"])
def test_padded_pixels_are_open_clips(name):
    preprocess = PreprocessConfig(resize_mode="longest", fill=0)
    assert parity.pixel_difference(FILES[name], preprocess) == 0


@pytest.mark.parametrize("size", [64, 336])
def test_bilinear_pixels_are_open_clips(size):
    preprocess = PreprocessConfig(interpolation="bilinear")
    for data in FILES.values():
        assert parity.pixel_difference(data, preprocess, size) == 0


@pytest.mark.parametrize("name", FILES)
def test_a_training_crop_is_pillows(name):
    assert parity.crop_difference(FILES[name]) < 0.02


@pytest.mark.parametrize("margin", range(1, 9))
def test_a_crop_of_transformers_lies_where_its_image_processor_has_it(margin):
    assert parity.processor_difference((48 + margin, 48), 48) == 0
    assert parity.processor_difference((48, 48 + margin), 48) == 0
    assert parity.processor_difference((48 + margin, 53 + margin), 48) == 0


@pytest.mark.parametrize("context_length", [77, 16])
def test_token_ids_are_open_clips(context_length):
    assert parity.different_tokens(10_000, context_length) == 0

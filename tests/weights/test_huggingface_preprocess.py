"""Every key of an image processor that changes pixels is honoured, or refused by its name."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import PreprocessConfig
from clip_jax.data.images.transforms import eval_image
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import normalize_pixels
from clip_jax.weights.config_values import Section
from clip_jax.weights.huggingface_preprocess import read_preprocess, write_preprocess

CLIP = model_config("ViT-B-32", image_size=48, patch_size=16)
SIGLIP = model_config("ViT-B-16-SigLIP", image_size=48)
SIZES = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}


def read(content, config=CLIP):
    return read_preprocess(Section(SIZES | content, "a file"), config)


def test_what_a_file_leaves_out_is_the_default_of_its_class():
    assert read({}) == PreprocessConfig(crop_offset="floor")
    siglip = read_preprocess(Section({"size": {"height": 48, "width": 48}}, "a file"), SIGLIP)
    assert siglip == PreprocessConfig(mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash")
    vit = {"image_processor_type": "ViTImageProcessorFast", "size": 48}
    assert read_preprocess(Section(vit, "a file"), SIGLIP).interpolation == "bilinear"


@pytest.mark.parametrize(
    ("content", "field", "value"),
    [
        ({"size": {"shortest_edge": 56}}, "resize_size", 56),
        ({"size": 56}, "resize_size", 56),
        ({"size": {"height": 56, "width": 56}}, "resize_size", 56),
        ({"size": {"height": 48, "width": 48}}, "resize_mode", "squash"),
        ({"size": {"height": 48, "width": 48}, "do_center_crop": False}, "resize_mode", "squash"),
        ({"crop_size": 48}, "resize_size", None),
        ({"resample": 2}, "interpolation", "bilinear"),
        ({"resample": 0}, "interpolation", "nearest"),
        ({"image_mean": [0.1, 0.2, 0.3]}, "mean", (0.1, 0.2, 0.3)),
        ({"image_std": [0.1, 0.2, 0.3]}, "std", (0.1, 0.2, 0.3)),
        ({"do_normalize": False}, "mean", (0.0, 0.0, 0.0)),
        ({"do_normalize": False}, "std", (1.0, 1.0, 1.0)),
        ({"do_convert_rgb": False}, "mean", PreprocessConfig().mean),
    ],
)
def test_a_key_is_honoured(content, field, value):
    assert getattr(read(content), field) == value


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 1 / 255),
        ({"rescale_factor": 1 / 127.5}, 1 / 127.5),
        ({"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0] * 3}, 1.0),
    ],
)
@pytest.mark.parametrize("normalized", [True, False])
def test_pixels_are_scaled_and_normalised_as_the_file_says(changes, factor, normalized):
    content = {
        "image_mean": [0.25] * 3,
        "image_std": [0.5] * 3,
        "do_normalize": normalized,
    } | changes
    pixels_BHWC = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    expected = pixels_BHWC * factor
    if normalized:
        expected = (expected - content["image_mean"]) / content["image_std"]
    ours = normalize_pixels(pixels_BHWC, read(content))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"crop_size": {"height": 48, "width": 64}}, "crop_size"),
        ({"crop_size": 32}, "crop_size is 32; 48"),
        ({"size": {"height": 48, "width": 64}}, "size"),
        ({"size": {"longest_edge": 48}}, "size"),
        ({"size": {"shortest_edge": 48, "longest_edge": 90}}, "size"),
        ({"size": {"height": 64, "width": 64}, "do_center_crop": False}, "size"),
        ({"resample": 1}, "resample is 1"),
        ({"resample": "bicubic"}, "resample"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"image_mean": 0.5}, "image_mean"),
        ({"image_mean": None, "image_std": [0.5, 0.5]}, "image_std"),
        ({"image_std": [0, 0.5, 0.5]}, "std"),
        ({"image_mean": [123.0, 116.0, 103.0]}, "mean"),
        ({"do_pad": True}, "do_pad"),
        ({"crop_pct": 0.875}, "crop_pct"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor"),
    ],
)
def test_what_cannot_be_honoured_is_refused(content, word):
    with pytest.raises(ValueError, match=f"^a file: .*{word}"):
        read(content)


def test_a_crop_smaller_than_the_resize_takes_the_centre():
    preprocess = read({"size": {"shortest_edge": 56}})
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (80, 112, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    expected = image.resize((78, 56), Image.Resampling.BICUBIC).crop((15, 4, 63, 52))
    ours = eval_image(file.getvalue(), preprocess, 48, 10_000)
    np.testing.assert_array_equal(ours, np.asarray(expected))


@pytest.mark.parametrize("margin", range(9))
@pytest.mark.parametrize("wide", [False, True])
def test_an_odd_margin_is_split_as_transformers_does_and_open_clip_does_not(margin, wide):
    # Of a margin of 3 transformers crops int(1.5) = 1 pixel, and torchvision round(1.5) = 2.
    rng = np.random.default_rng(margin)
    size = (48 + margin, 48) if wide else (48, 48 + margin)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    for preprocess, offset in ((read({}), margin // 2), (PreprocessConfig(), round(margin / 2))):
        left, top = (offset, 0) if wide else (0, offset)
        expected = np.asarray(image.crop((left, top, left + 48, top + 48)))
        np.testing.assert_array_equal(eval_image(file.getvalue(), preprocess, 48, 10_000), expected)


@pytest.mark.parametrize("config", [CLIP, SIGLIP])
@pytest.mark.parametrize(
    "changes", [{}, {"resize_size": 56}, {"resize_mode": "squash"}, {"interpolation": "nearest"}]
)
def test_what_is_written_is_read_back(config, changes):
    preprocess = dataclasses.replace(config.preprocess, **changes)
    config = dataclasses.replace(config, preprocess=preprocess)
    content = write_preprocess(config)
    offset = "floor" if content.get("do_center_crop") else "round"
    expected = dataclasses.replace(preprocess, crop_offset=offset)
    assert read_preprocess(Section(content, "a file"), config) == expected

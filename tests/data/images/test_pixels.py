"""Tests of resizing, crops, padding and changes of colour."""

import math

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import AugmentConfig
from clip_jax.data.images.pixels import (
    PILLOW_FILTERS,
    center,
    draw_jitter,
    eval_size,
    fast_resize,
    jitter_colors,
    random_box,
    resize,
    to_gray,
)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [(512, 384), (384, 512), (100, 333), (37, 50), (64, 64), (1, 1), (3, 200), (900, 7)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(64, 64), (96, 64), (64, 200)])
def test_resize_gives_pillows_pixels(interpolation, size, target, pillow_resize):
    # Pure noise is the hardest case; photographs differ by a quarter of this.
    pixels_HWC = noise(*size)
    expected_HWC = np.asarray(
        pillow_resize(Image.fromarray(pixels_HWC), target, PILLOW_FILTERS[interpolation])
    )
    actual_HWC = resize(pixels_HWC, target, interpolation)
    assert actual_HWC.shape == expected_HWC.shape
    assert np.abs(actual_HWC.astype(int) - expected_HWC).mean() < 0.02


def test_fast_resize_is_antialiased():
    stripes_HWC = np.zeros((256, 256, 3), np.uint8)
    stripes_HWC[:, ::2] = 255
    pixels_HWC = fast_resize(stripes_HWC, (32, 32))
    assert np.abs(pixels_HWC[:, 1:-1].astype(int) - 127).max() <= 2


def test_sizes_are_rounded_as_torchvision_rounds_them():
    assert eval_size((500, 375), "shortest", 224) == (298, 224)
    assert eval_size((375, 500), "shortest", 224) == (224, 298)
    assert eval_size((500, 375), "squash", 224) == (224, 224)
    assert eval_size((500, 375), "longest", 224) == (224, 168)
    assert eval_size((5000, 1), "longest", 224) == (224, 1)


def test_center_crops_what_is_larger_and_pads_what_is_smaller():
    pixels_HWC = noise(7, 4)
    np.testing.assert_array_equal(center(pixels_HWC, 4, 0), pixels_HWC[:, 2:6])
    padded = center(noise(3, 5), 5, 9)
    np.testing.assert_array_equal(padded[:, 1:4], noise(3, 5))
    assert (padded[:, [0, 4]] == 9).all()


def test_crops_have_the_asked_for_area_and_shape_and_stay_inside():
    augment = AugmentConfig(crop_scale=(0.2, 0.5), crop_ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = [random_box((400, 300), rng, augment) for _ in range(500)]
    widths, heights = (np.array([box[i + 2] - box[i] for box in boxes]) for i in (0, 1))
    assert all(0 <= left < right <= 400 and 0 <= top < bottom <= 300
               for left, top, right, bottom in boxes)  # fmt: skip
    shares = widths * heights / (400 * 300)
    assert (shares.min() > 0.19) and (shares.max() < 0.51)
    assert abs(shares.mean() - 0.35) < 0.02
    ratios = np.log(widths / heights)
    assert abs(ratios).max() < math.log(2.05)
    assert abs(ratios.mean()) < 0.1
    assert len({box[0] for box in boxes}) > 100


def test_an_elongated_image_is_cropped_at_its_centre():
    augment = AugmentConfig(crop_scale=(0.9, 1.0))
    rng = np.random.default_rng(0)
    assert random_box((1000, 90), rng, augment) == (440, 0, 560, 90)
    assert random_box((90, 1000), rng, augment) == (0, 440, 90, 560)


def test_jitter_changes_colours_and_keeps_gray_gray_without_strength():
    pixels_HWC = noise(16, 16)
    rng = np.random.default_rng(0)
    assert draw_jitter(rng, (0, 0, 0, 0)) == []
    assert (jitter_colors(pixels_HWC, draw_jitter(rng, (0.4, 0.4, 0.4, 0.1))) != pixels_HWC).any()
    gray_HWC = to_gray(pixels_HWC)
    assert (gray_HWC == gray_HWC[..., :1]).all()
    paler_HWC = jitter_colors(gray_HWC, draw_jitter(rng, (0, 0, 0.9, 0)))
    np.testing.assert_array_equal(paler_HWC, gray_HWC)


def test_hue_turns_a_full_circle_back_to_itself():
    red_HWC = np.zeros((4, 4, 3), np.uint8)
    red_HWC[..., 0] = 200
    turned = {
        tuple(
            jitter_colors(red_HWC, draw_jitter(np.random.default_rng(seed), (0, 0, 0, 0.5)))[0, 0]
        )
        for seed in range(60)
    }
    assert len(turned) > 20
    assert all(max(color) == 200 and min(color) == 0 for color in turned)

"""Tests of decoding, the training crop and the evaluation resize."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_jax.config import AugmentConfig, PreprocessConfig
from clip_jax.data.images import formats
from clip_jax.data.images.pixels import PILLOW_FILTERS
from clip_jax.data.images.transforms import (
    ORIENTATION,
    ImageError,
    decode,
    eval_image,
    exif_orientation,
    open_picture,
    train_image,
)

MANY = 10_000_000
PREPROCESS = PreprocessConfig()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise, which compresses as photographs do."""
    rng = np.random.default_rng(seed)
    cell = 8 + width // 40
    small = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow_eval(data: bytes, size: int, kernel=Image.Resampling.BICUBIC) -> np.ndarray:
    """What torchvision's Resize and CenterCrop do, in Pillow's words."""
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    if width <= height:
        longer = (size, int(size * height / width))
    else:
        longer = (int(size * width / height), size)
    image = image.resize(longer, kernel)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    image.info.pop("transparency", None)
    return np.asarray(image.convert("RGB"))


FILES = {
    "jpeg": encoded(photo(301, 199), quality=90),
    "portrait": encoded(photo(100, 333), quality=90),
    "progressive": encoded(photo(301, 199), progressive=True),
    "gray": encoded(photo(90, 91).convert("L")),
    "cmyk": encoded(photo(120, 91).convert("CMYK")),
    "png": encoded(photo(64, 63), "PNG"),
    "palette": encoded(photo(120, 91).convert("P"), "PNG"),
    "palette_with_transparency": encoded(photo(99, 70).convert("P"), "PNG", transparency=b"\x00\x7f"),
    "alpha": encoded(photo(120, 91).convert("RGBA").rotate(30), "PNG"),
    "gray_alpha": encoded(photo(120, 91).convert("LA"), "PNG"),
    "bitmap": encoded(photo(120, 91).convert("1"), "PNG"),
    "webp": encoded(photo(120, 91), "WEBP"),
    "gif": encoded(photo(120, 91), "GIF"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_becomes_the_pixels_that_pillow_gives(name):
    data = FILES[name]
    image = Image.open(io.BytesIO(data))
    image.info.pop("transparency", None)
    np.testing.assert_array_equal(decode(data, max_pixels=MANY), np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(eval_image(data, PREPROCESS, 56, MANY), pillow_eval(data, 56))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_evaluation_sees_pillows_pixels_to_the_last_bit_at_any_size(mode, interpolation):
    preprocess = dataclasses.replace(PREPROCESS, interpolation=interpolation)
    rng = np.random.default_rng(0)
    for _ in range(12):
        width, height, size = (int(length) for length in np.exp(rng.uniform(1.5, 5.5, 3)))
        noise_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        kind = ("TIFF" if mode == "CMYK" else "PNG") if rng.random() < 0.5 else "JPEG"
        kind = "PNG" if kind == "JPEG" and mode in ("RGBA", "P", "1") else kind
        data = encoded(Image.fromarray(noise_HWC).convert(mode), kind)
        expected = pillow_eval(data, size, PILLOW_FILTERS[interpolation])
        np.testing.assert_array_equal(eval_image(data, preprocess, size, MANY), expected)


def test_sixteen_bit_gray_keeps_its_brightness():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"), max_pixels=MANY)
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_exif_rotation_is_ignored_unless_it_is_asked_for():
    exif = Image.Exif()
    exif[0x0112] = 6
    upright, rotated = encoded(photo(80, 40)), encoded(photo(80, 40), exif=exif)
    np.testing.assert_array_equal(
        decode(rotated, max_pixels=MANY), decode(upright, max_pixels=MANY)
    )


JPEG = FILES["jpeg"]
SPOILED = bytearray(JPEG)
SPOILED[-1000:-940] = bytes(range(60))
BAD = {
    "empty-file": b"",
    "html-instead-of-image": b"  <!DOCTYPE html><html><body>404</body></html>",
    "unknown-format": b"just some text",
    "truncated-jpeg": JPEG[: len(JPEG) // 2],
    "corrupt-jpeg": bytes(SPOILED),
    "truncated-png": FILES["png"][:-200],
    "wrong-mode": encoded(Image.new("F", (9, 9)), "TIFF"),
    "too-many-pixels": encoded(Image.new("RGB", (4000, 2600)), "PNG"),
}


@pytest.mark.parametrize("reason", BAD)
@pytest.mark.parametrize("fast", [False, True])
def test_a_bad_file_is_refused_with_its_reason(reason, fast):
    augment = AugmentConfig(resize="fast" if fast else "exact")
    with pytest.raises(ImageError) as caught:
        train_image(BAD[reason], np.random.default_rng(0), augment, PREPROCESS, 32, MANY)
    assert caught.value.reason == reason
    with pytest.raises(ImageError) as caught:
        eval_image(BAD[reason], PREPROCESS, 32, MANY)
    assert caught.value.reason == reason


def test_no_damaged_byte_raises_anything_but_an_image_error():
    rng = np.random.default_rng(0)
    for name in ("jpeg", "png", "webp", "gif", "palette"):
        for _ in range(40):
            damaged = bytearray(FILES[name])
            for place in rng.integers(len(damaged), size=4):
                damaged[place] = rng.integers(256)
            damaged = bytes(damaged[: rng.integers(1, len(damaged))])
            try:
                assert decode(damaged, max_pixels=MANY).dtype == np.uint8
            except ImageError as error:
                assert error.reason


def test_size_is_checked_before_anything_is_decoded():
    width = height = 30_000
    bomb = bytearray(encoded(Image.new("L", (8, 8))))
    place = bomb.index(b"\xff\xc0") + 5
    bomb[place : place + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    with pytest.raises(ImageError, match="too-many-pixels"):
        decode(bytes(bomb), max_pixels=MANY)
    ribbon = encoded(Image.new("RGB", (60_000, 2)), "PNG")
    with pytest.raises(ImageError, match="too-elongated"):
        eval_image(ribbon, PREPROCESS, 224, MANY)


def test_a_training_image_depends_on_the_generator_alone():
    augment = AugmentConfig(
        crop_scale=(0.3, 1.0), flip=True, color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale_prob=0.2
    )

    def draw(seed):
        rng = np.random.default_rng(seed)
        return train_image(JPEG, rng, augment, PREPROCESS, 32, MANY)

    assert draw(0).shape == (32, 32, 3)
    np.testing.assert_array_equal(draw(0), draw(0))
    assert len({draw(seed).tobytes() for seed in range(8)}) == 8


def test_a_crop_of_everything_is_the_squashed_image():
    whole = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(301 / 199, 301 / 199))
    expected = Image.open(io.BytesIO(JPEG)).resize((48, 48), Image.Resampling.BICUBIC)
    actual = train_image(JPEG, np.random.default_rng(0), whole, PREPROCESS, 48, MANY)
    assert np.abs(actual.astype(int) - np.asarray(expected)).mean() < 0.02


@pytest.mark.parametrize("width,height", [(301, 199), (1300, 900), (40, 30)])
def test_the_fast_setting_sees_the_same_crop(width, height):
    data = encoded(photo(width, height), quality=95)
    exact, fast = (
        train_image(
            data, np.random.default_rng(3), AugmentConfig(resize=resize), PREPROCESS, 64, MANY
        ).astype(int)
        for resize in ("exact", "fast")
    )
    assert 0 < np.abs(exact - fast).mean() < 12
    assert np.corrcoef(exact.ravel(), fast.ravel())[0, 1] > 0.95


def test_flip_mirrors_half_of_the_images():
    augment = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(301 / 199, 301 / 199), flip=True)
    seen = [
        train_image(JPEG, np.random.default_rng(seed), augment, PREPROCESS, 16, MANY)
        for seed in range(40)
    ]
    mirrored = sum(not np.array_equal(image, seen[0]) for image in seen)
    assert 10 < mirrored < 30
    assert {image.tobytes() for image in seen} == {seen[0].tobytes(), seen[0][:, ::-1].tobytes()}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_turns_as_pillow_does_where_it_is_asked_for(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(photo(96, 64), kind, exif=exif, **options)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert exif_orientation(data) == orientation
    pixels = decode(data, max_pixels=MANY, exif_rotation=True)
    assert pixels.shape == np.asarray(turned).shape
    assert np.abs(pixels.astype(int) - np.asarray(turned)).mean() < 1
    preprocess = dataclasses.replace(PreprocessConfig(), exif_rotation=True)
    plain = encoded(turned, "PNG")
    actual = eval_image(data, preprocess, 32, MANY).astype(int)
    assert np.abs(actual - eval_image(plain, PreprocessConfig(), 32, MANY)).mean() < 1
    for resize in ("exact", "fast"):
        crop = AugmentConfig(crop_scale=(0.4, 0.6), resize=resize)
        plain = encoded(turned, "JPEG" if kind == "JPEG" else "PNG", **options)
        both = [
            train_image(file, np.random.default_rng(3), crop, how, 16, MANY).astype(int)
            for file, how in ((data, preprocess), (plain, PreprocessConfig()))
        ]
        assert np.abs(both[0] - both[1]).mean() < (2 if resize == "exact" else 8)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once_as_pillow_does_in_any_case(orientation, asked):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photo(96, 64), "TIFF", exif=exif)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels = decode(data, max_pixels=MANY, exif_rotation=asked)
    np.testing.assert_array_equal(pixels, np.asarray(turned))


TIFF_6 = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # big-endian
ODD_EXIF = {
    "no such orientation": ("JPEG", 9, 1),
    "zero": ("JPEG", 0, 1),
    "garbage": ("JPEG", b"Exif\0\0garbage-garbage", 1),
    "big-endian": ("JPEG", b"Exif\0\0" + TIFF_6, 6),
    "a phone's MPO": ("MPO", 6, 6),
    "AVIF": ("AVIF", 6, 6),
}


@pytest.mark.parametrize("name", ODD_EXIF)
def test_odd_exif_is_read_as_pillow_does_and_never_fails(name):
    kind, value, expected = ODD_EXIF[name]
    exif = value if isinstance(value, bytes) else Image.Exif()
    if isinstance(value, int):
        exif[ORIENTATION] = value
    data = encoded(photo(96, 64), kind, exif=exif)
    assert exif_orientation(data) == expected
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decode(data, max_pixels=MANY, exif_rotation=True).shape[:2] == turned.size[::-1]
    assert decode(data, max_pixels=MANY).shape[:2] == (64, 96)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA"])
def test_formats_that_are_not_on_the_list_are_not_opened(kind):
    with pytest.raises(ImageError) as caught:
        decode(encoded(photo(32, 32), kind), max_pixels=MANY)
    assert caught.value.reason == "unknown-format"


def test_an_image_above_pillows_own_limit_is_opened_where_the_setting_allows_it():
    file = io.BytesIO()
    Image.new("1", (14_000, 13_500), 1).save(file, "PNG")
    with pytest.raises(ImageError, match="too-many-pixels"):
        open_picture(file.getvalue(), MANY)
    assert open_picture(file.getvalue(), 300_000_000).size == (14_000, 13_500)


@pytest.mark.parametrize("kind", sorted(set(formats.pillow()) - {"DIB"}))
def test_every_format_of_the_list_is_read(kind):
    data = encoded(photo(40, 32), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    actual = decode(data, max_pixels=MANY).astype(int)
    assert actual.shape == (32, 40, 3) and np.abs(actual - expected).mean() < 1

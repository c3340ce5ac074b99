"""Files that cameras, browsers and programs write show what they should, by their colours."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.images.transforms import decode

MANY = 10_000_000
COLORS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (245, 245, 245))
CENTRES = ((15, 20), (15, 60), (45, 20), (45, 60))  # rows and columns of an image of 80 x 60
QUARTERS = Image.new("RGB", (80, 60))
for number, color in enumerate(COLORS):
    QUARTERS.paste(color, (number % 2 * 40, number // 2 * 30, number % 2 * 40 + 40, number // 2 * 30 + 30))  # fmt: skip
BLACK = Image.new("RGB", (80, 60))


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # a JPEG leaves its settings in the image
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


RIGHT = {
    "stored on its side": saved(QUARTERS, "JPEG", quality=95, exif=turned()),
    "CMYK of Adobe's kind": saved(QUARTERS.convert("CMYK"), "JPEG", quality=95),
    "CMYK in a TIFF": saved(QUARTERS.convert("CMYK"), "TIFF"),
    "progressive": saved(QUARTERS, "JPEG", quality=95, progressive=True),
    "without subsampling": saved(QUARTERS, "JPEG", quality=95, subsampling=0),
    "a phone's MPO": saved(QUARTERS, "MPO", save_all=True, append_images=[BLACK.copy()], quality=95),
    "an animated GIF": saved(QUARTERS, "GIF", save_all=True, append_images=[BLACK.copy()]),
    "an animated PNG": saved(QUARTERS, "PNG", save_all=True, append_images=[BLACK.copy()]),
    "an animated WebP": saved(QUARTERS, "WEBP", lossless=True, save_all=True, append_images=[BLACK.copy()]),
    "a TIFF of two pages": saved(QUARTERS, "TIFF", save_all=True, append_images=[BLACK.copy()]),
    "AVIF": saved(QUARTERS, "AVIF", quality=95),
    "a palette": saved(QUARTERS.quantize(8), "PNG"),
    "a palette in a BMP": saved(QUARTERS.quantize(8), "BMP"),
    "JPEG 2000": saved(QUARTERS, "JPEG2000"),
    "PPM": saved(QUARTERS, "PPM"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_quarters_have_their_colours(name):
    pixels = decode(RIGHT[name], max_pixels=MANY)
    assert pixels.shape == (60, 80, 3)
    for place, color in zip(CENTRES, COLORS):
        assert np.abs(pixels[place].astype(int) - color).max() <= 6


def test_sixteen_bits_are_a_ramp_and_not_white():
    ramp = np.tile(np.linspace(0, 65535, 80).astype(np.uint16), (60, 1))
    pixels = decode(saved(Image.fromarray(ramp), "PNG"), max_pixels=MANY)
    assert (pixels.min(), pixels.max()) == (0, 255) and abs(pixels.mean() - 127) < 1


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_is_transparent_is_dropped_and_the_colour_below_it_stays(mode):
    """As in open_clip: nothing is laid on white."""
    image = Image.new("RGBA", (80, 60), (0, 0, 0, 0))
    image.paste((220, 30, 30, 255), (20, 15, 60, 45))
    data = saved(image, "PNG")
    if mode == "P":
        data = saved(image.convert("RGB").quantize(2), "PNG", transparency=0)
    pixels = decode(data, max_pixels=MANY)
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[30, 40].tolist() == [220, 30, 30]

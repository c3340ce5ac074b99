"""Arithmetic on uint8 pixels: antialiased resizing, crops, padding and changes of colour."""

import functools
import math
import threading

import numpy as np
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image, ImageEnhance

from clip_jax.config import AugmentConfig, Interpolation, Rounding

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
Size = tuple[int, int]  # width, height, in pixels

PILLOW_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
# By EXIF's orientation: steps of rows and columns, after a transposition from 5 on.
TURNS = {
    1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1),
    5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1),
}  # fmt: skip
# Pillow's bicubic is the kernel with a = -1/2, which others call Catmull-Rom.
KERNELS = {"bicubic": FilterType.catmull_rom, "bilinear": FilterType.bilinear}


def resize(pixels_HWC: np.ndarray, size: Size, interpolation: Interpolation) -> np.ndarray:
    """Resize uint8 pixels to `size` with Pillow's antialiased kernels, several times faster.

    The mean difference to Pillow is below 0.01 of 255: both round to uint8 between the two
    passes, so the passes must also come in Pillow's order. It is that of version 13, whichever is
    installed; older ones always begin with the rows, which makes 0.2 of 255 on tall images.
    """
    H, W, _ = pixels_HWC.shape
    width, height = size
    if size == (W, H) or interpolation == "nearest":
        return pillow_resize(pixels_HWC, size, interpolation)
    vertical_first = H - height > 2 * max(0, W - width)
    between = (W, height) if vertical_first else (width, H)
    return _convolve(pixels_HWC, [between, size], KERNELS[interpolation])


def pillow_resize(pixels_HWC: np.ndarray, size: Size, interpolation: Interpolation) -> np.ndarray:
    """Resize by the installed Pillow: its pixels to the last bit, at twice the time of `resize`.

    Pillow weighs with 22 bits and `resize` with 14 or 15, so that one pixel of 250 differs by one.
    """
    H, W, _ = pixels_HWC.shape
    if size == (W, H):
        return pixels_HWC
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    return np.asarray(image.resize(size, PILLOW_FILTERS[interpolation]))


def fast_resize(pixels_HWC: np.ndarray, size: Size) -> np.ndarray:
    """Resize with a bilinear antialiased kernel, which costs half and blurs a little more."""
    return _convolve(pixels_HWC, [size], FilterType.bilinear)


_thread = threading.local()


def _convolve(pixels_HWC: np.ndarray, sizes: list[Size], kernel: FilterType) -> np.ndarray:
    """Resize to each of the sizes in turn."""
    if not hasattr(_thread, "resizer"):
        # It holds buffers, which two threads must not share.
        _thread.resizer = Resizer()
    H, W, _ = pixels_HWC.shape
    source = ImageData(W, H, PixelType.U8x3, pixels_HWC.tobytes())
    for size in sizes:
        if size != (source.width, source.height):
            target = ImageData(*size, PixelType.U8x3)
            _thread.resizer.resize(source, target, _options(kernel))
            source = target
    width, height = sizes[-1]
    return np.frombuffer(source.get_buffer(), np.uint8).reshape(height, width, 3)


@functools.cache
def _options(kernel: FilterType) -> ResizeOptions:
    return ResizeOptions(resize_alg=ResizeAlg.convolution(kernel), use_alpha=False)


def eval_size(size: Size, mode: str, image_size: int) -> Size:
    """The size that an image of `size` is resized to, rounded as torchvision and open_clip do."""
    width, height = size
    if mode == "squash":
        return image_size, image_size
    if mode == "longest":
        ratio = max(width, height) / image_size
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    short, long = sorted(size)
    long = int(image_size * long / short)
    return (image_size, long) if width <= height else (long, image_size)


def center(
    pixels_HWC: np.ndarray, image_size: int, fill: int, offset: Rounding = "round"
) -> np.ndarray:
    """Pad what is smaller than a square of `image_size` and crop what is larger, at the centre.

    `offset` says how a crop lies whose margin is odd: see `PreprocessConfig.crop_offset`.
    """
    H, W, _ = pixels_HWC.shape
    if min(H, W) < image_size:
        missing = [max(0, image_size - length) for length in (H, W)]
        pads = [(lack // 2, (lack + 1) // 2) for lack in missing]
        pixels_HWC = np.pad(pixels_HWC, [*pads, (0, 0)], constant_values=fill)
        H, W, _ = pixels_HWC.shape
    rounded = round if offset == "round" else math.floor
    top, left = (rounded((length - image_size) / 2) for length in (H, W))
    return np.ascontiguousarray(pixels_HWC[top : top + image_size, left : left + image_size])


def random_box(size: Size, rng: np.random.Generator, augment: AugmentConfig) -> Box:
    """Draw a crop by the rule of torchvision's RandomResizedCrop (arXiv:1409.4842, section 6)."""
    width, height = size
    (smallest, largest), (low, high) = augment.crop_scale, augment.crop_ratio
    for _ in range(10):
        scale, shape, y, x = rng.random(4).tolist()
        area = width * height * (smallest + (largest - smallest) * scale)
        ratio = low * (high / low) ** shape
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
            return left, top, left + w, top + h
    # An elongated image, of which no crop has the shape: the largest one at the centre.
    w = min(width, max(1, round(height * high)))
    h = min(height, max(1, round(width / low)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def draw_jitter(
    rng: np.random.Generator, strengths: tuple[float, float, float, float]
) -> list[tuple[int, float]]:
    """Changes of brightness, contrast, saturation and hue (0 to 3), in random order, and how much."""
    changes = []
    for i in rng.permutation(4).tolist():
        strength = strengths[i]
        if strength:
            least = max(0.0, 1 - strength) if i < 3 else -strength
            changes.append((i, rng.uniform(least, 1 + strength if i < 3 else strength)))
    return changes


def jitter_colors(pixels_HWC: np.ndarray, changes: list[tuple[int, float]]) -> np.ndarray:
    """Change brightness, contrast, saturation and hue as `draw_jitter` says (torchvision's rule)."""
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for i, amount in changes:
        image = enhancers[i](image).enhance(amount) if i < 3 else _shift_hue(image, amount)
    return np.asarray(image)


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = int(turns * 255) % 256  # hue is an angle: it wraps around
    hue = Image.fromarray(np.asarray(hue) + np.uint8(shift))
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def to_gray(pixels_HWC: np.ndarray) -> np.ndarray:
    """Luminance in all three channels."""
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC)).convert("L")
    return np.asarray(image.convert("RGB"))


def turn(pixels_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels as EXIF's orientation says, without a copy."""
    if orientation in (5, 6, 7, 8):
        pixels_HWC = pixels_HWC.transpose(1, 0, 2)
    vertical, horizontal = TURNS[orientation]
    return pixels_HWC[::vertical, ::horizontal]


def turned_size(size: Size, orientation: int) -> Size:
    """The size that `turn` gives an image of `size`."""
    return size[::-1] if orientation in (5, 6, 7, 8) else size


def stored_box(box: Box, size: Size, orientation: int) -> Box:
    """Where a box of a turned image of `size` lies in the image as it is stored."""
    left, top, right, bottom = box
    width, height = size
    vertical, horizontal = TURNS[orientation]
    if vertical < 0:
        top, bottom = height - bottom, height - top
    if horizontal < 0:
        left, right = width - right, width - left
    return (top, left, bottom, right) if orientation in (5, 6, 7, 8) else (left, top, right, bottom)

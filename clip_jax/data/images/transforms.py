"""Image files to uint8 pixels: decoding, the training crop and the evaluation resize."""

import dataclasses
import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from clip_jax.config import AugmentConfig, Interpolation, PreprocessConfig
from clip_jax.data.images import formats
from clip_jax.data.images.pixels import (
    PILLOW_FILTERS,
    TURNS,
    Box,
    Size,
    center,
    draw_jitter,
    eval_size,
    fast_resize,
    jitter_colors,
    pillow_resize,
    random_box,
    resize,
    to_gray,
    turn,
    turned_size,
)

JPEG_START = b"\xff\xd8\xff"
ORIENTATION = 0x0112  # the EXIF tag
PILLOW_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# Pillow turns these into RGB as they are meant; of others ("I", "F") nobody knows the range.
RGB_LIKE = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB"}


# "fast" and "exact" are those of `AugmentConfig.resize`; "pillow" is Pillow's own, to the last bit.
Resizer = Literal["fast", "exact", "pillow"]


class ImageError(ValueError):
    """A file that is not an image that can be used; `reason` is a short slug to count it by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


# ---------------------------------------------------------------------------- what callers use


def decode(data: bytes, *, max_pixels: int, exif_rotation: bool = False) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8. Only if asked it is turned as its EXIF says.

    Raises:
      ImageError: for bytes that are no image, a damaged one, or one above `max_pixels`.
    """
    picture = open_picture(data, max_pixels, exif_rotation=exif_rotation)
    return picture.resized((0, 0, *picture.size), picture.size, "nearest")


def train_image(
    data: bytes,
    rng: np.random.Generator,
    augment: AugmentConfig,
    preprocess: PreprocessConfig,
    image_size: int,
    max_pixels: int,
) -> np.ndarray:
    """A random crop of an image file, resized to (image_size, image_size, 3) uint8.

    What is random depends on `rng` and on the image's size alone. With `augment.resize="exact"`
    the pixels are Pillow's to 0.02 of 255 on average; with "fast" a JPEG is decoded at a reduced
    scale where it is large enough and resized with a bilinear kernel.

    Raises:
      ImageError: as `decode`.
    """
    return draw_crop(data, rng, augment, preprocess, image_size, max_pixels).pixels()


def draw_crop(
    data: bytes,
    rng: np.random.Generator,
    augment: AugmentConfig,
    preprocess: PreprocessConfig,
    image_size: int,
    max_pixels: int,
) -> "TrainCrop":
    """All that `train_image` draws for a file, of which only the header is read."""
    picture = open_picture(data, max_pixels, exif_rotation=preprocess.exif_rotation)
    box = random_box(picture.size, rng, augment)
    flip = augment.flip and rng.random() < 0.5
    jitters = augment.color_jitter is not None and rng.random() < augment.color_jitter_prob
    jitter = draw_jitter(rng, augment.color_jitter) if jitters else []
    gray = bool(augment.grayscale_prob) and rng.random() < augment.grayscale_prob
    size = (image_size, image_size)
    return TrainCrop(
        picture, box, size, preprocess.interpolation, augment.resize, flip, jitter, gray
    )


def eval_image(
    data: bytes, preprocess: PreprocessConfig, image_size: int, max_pixels: int
) -> np.ndarray:
    """An image file as open_clip's evaluation sees it, (image_size, image_size, 3) uint8.

    The installed Pillow resizes, so that the pixels are those of other programs to the last bit.

    Raises:
      ImageError: as `decode`, and for an image so elongated that resizing its shorter side to
        `image_size` would make it larger than `max_pixels`.
    """
    picture = open_picture(data, max_pixels, exif_rotation=preprocess.exif_rotation)
    resize_size = preprocess.resize_size or image_size
    width, height = size = eval_size(picture.size, preprocess.resize_mode, resize_size)
    if width * height > max(max_pixels, resize_size**2):
        found = f"{picture.size[0]}x{picture.size[1]} pixels"
        raise ImageError("too-elongated", f"{found} would become {width}x{height}")
    whole = (0, 0, *picture.size)
    pixels_HWC = picture.resized(whole, size, preprocess.interpolation, "pillow")
    return center(pixels_HWC, image_size, preprocess.fill, preprocess.crop_offset)


# ------------------------------------------------------------------------------------ opening


def open_picture(data: bytes, max_pixels: int, *, exif_rotation: bool = False) -> "Jpeg | Picture":
    """Read an image file's header, and nothing more."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit, which the setting then is above
    picture = _open_jpeg(data) if data.startswith(JPEG_START) else None
    picture = picture or _open_with_pillow(data)
    if exif_rotation:
        picture = dataclasses.replace(picture, orientation=exif_orientation(data))
    width, height = picture.size
    if width * height == 0:
        raise ImageError("zero-size", f"the image is {width}x{height} pixels")
    if width * height > max_pixels:
        found = f"{width}x{height} pixels, above data.max_image_pixels={max_pixels:_}"
        raise ImageError("too-many-pixels", found)
    return picture


def _open_jpeg(data: bytes) -> "Jpeg | None":
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # damaged, or of a rare subsampling that Pillow alone decodes
    if color_space in ("CMYK", "YCCK"):
        return None
    return Jpeg(data, (width, height), color_space)


def _open_with_pillow(data: bytes) -> "Picture":
    if not data:
        raise ImageError("empty-file", "the file has no bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=formats.pillow())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too-many-pixels", str(error)) from error
    except Image.UnidentifiedImageError as error:
        start = data[:256].lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<svg")):
            raise ImageError("html-instead-of-image", repr(data[:40])) from error
        reason = "corrupt-jpeg" if data.startswith(JPEG_START) else "unknown-format"
        raise ImageError(reason, f"the file starts with {data[:16]!r}") from error
    except Exception as error:  # a damaged header makes a decoder raise whatever it likes
        raise ImageError("corrupt-header", f"{type(error).__name__}: {error}") from error
    if image.mode not in RGB_LIKE and not image.mode.startswith("I;16"):
        raise ImageError("wrong-mode", f'{image.format} with pixels of mode "{image.mode}"')
    return Picture(image)


def exif_orientation(data: bytes) -> int:
    """How an image file says that it is to be turned, from 1 (not at all) to 8.

    Of a TIFF it is 1, since Pillow turns it when it reads the pixels, whether asked to or not.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats.pillow())
        found = 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)
    except Exception:  # damage makes a parser raise whatever it likes, and no other is asked
        return 1
    return found if found in TURNS else 1


def _resize(
    pixels_HWC: np.ndarray, size: Size, interpolation: Interpolation, resizer: Resizer
) -> np.ndarray:
    function = pillow_resize if resizer == "pillow" else resize
    return function(pixels_HWC, size, interpolation)


def _jpeg_error(error: ValueError) -> ImageError:
    message = str(error)
    kind = "truncated" if "premature end" in message.lower() else "corrupt"
    return ImageError(f"{kind}-jpeg", message)


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file with grey or RGB pixels, not decoded yet."""

    data: bytes
    stored_size: Size
    color_space: str
    orientation: int = 1

    @property
    def size(self) -> Size:
        return turned_size(self.stored_size, self.orientation)

    def resized(
        self, box: Box, size: Size, interpolation: Interpolation, resizer: Resizer = "exact"
    ) -> np.ndarray:
        """The pixels inside `box`, resized to `size`."""
        try:
            if resizer == "fast":
                return self._fast(box, size)
            # strict: damage that other decoders paint over in grey is an error here.
            pixels_HWC = simplejpeg.decode_jpeg(self.data, strict=True)
        except ValueError as error:
            raise _jpeg_error(error) from error
        left, top, right, bottom = box
        pixels_HWC = turn(pixels_HWC, self.orientation)
        return _resize(pixels_HWC[top:bottom, left:right], size, interpolation, resizer)

    def _fast(self, box: Box, size: Size) -> np.ndarray:
        left, top, right, bottom = box
        width, height = self.size
        # The decoder may halve, quarter, ... the image while the crop stays larger than `size`.
        least = (
            math.ceil(width * size[0] / (right - left)),
            math.ceil(height * size[1] / (bottom - top)),
        )
        min_width, min_height = turned_size(least, self.orientation)
        pixels_HWC = simplejpeg.decode_jpeg(
            self.data,
            fastdct=True,
            fastupsample=True,
            min_width=min_width,
            min_height=min_height,
            min_factor=2,
        )
        pixels_HWC = turn(pixels_HWC, self.orientation)
        y, x = pixels_HWC.shape[0] / height, pixels_HWC.shape[1] / width
        rows = slice(round(top * y), max(round(bottom * y), round(top * y) + 1))
        columns = slice(round(left * x), max(round(right * x), round(left * x) + 1))
        return fast_resize(pixels_HWC[rows, columns], size)


@dataclass(frozen=True)
class Picture:
    """Any other image file, opened by Pillow, not decoded yet."""

    image: Image.Image
    orientation: int = 1

    @property
    def size(self) -> Size:
        return turned_size(self.image.size, self.orientation)

    def resized(
        self, box: Box, size: Size, interpolation: Interpolation, resizer: Resizer = "exact"
    ) -> np.ndarray:
        """The pixels inside `box`, resized to `size`."""
        image = self._loaded()
        if self.orientation != 1:
            image = image.transpose(PILLOW_TURNS[self.orientation])
        if image.mode == "RGB":
            left, top, right, bottom = box
            pixels_HWC = np.asarray(image)[top:bottom, left:right]
            return _resize(pixels_HWC, size, interpolation, resizer)
        # Resized before it becomes RGB, as torchvision does it: Pillow weighs pixels with their
        # alpha and resizes a palette's indices by nearest neighbour.
        image = image.crop(box).resize(size, PILLOW_FILTERS[interpolation])
        # Only asked for by convert, to warn of what it loses.
        image.info.pop("transparency", None)
        return np.asarray(image.convert("RGB"))

    def _loaded(self) -> Image.Image:
        kind = (self.image.format or "image").lower()
        try:
            self.image.load()
        except Exception as error:  # a damaged file makes a decoder raise whatever it likes
            what = "truncated" if "truncated" in str(error) else "corrupt"
            raise ImageError(f"{what}-{kind}", f"{type(error).__name__}: {error}") from error
        if self.image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(self.image) >> 8).astype(np.uint8))
        return self.image


@dataclass(frozen=True)
class TrainCrop:
    """A picture that is not decoded yet, and all that training does to it."""

    picture: Jpeg | Picture
    box: Box
    size: Size
    interpolation: Interpolation
    resizer: Resizer
    flip: bool
    jitter: list[tuple[int, float]]
    gray: bool

    def pixels(self) -> np.ndarray:
        """The pixels that the model sees, uint8."""
        resized_HWC = self.picture.resized(self.box, self.size, self.interpolation, self.resizer)
        return self.finished(resized_HWC)

    def finished(self, pixels_HWC: np.ndarray) -> np.ndarray:
        """What comes after the resizing."""
        if self.flip:
            pixels_HWC = pixels_HWC[:, ::-1]
        if self.jitter:
            pixels_HWC = jitter_colors(pixels_HWC, self.jitter)
        if self.gray:
            pixels_HWC = to_gray(pixels_HWC)
        return np.ascontiguousarray(pixels_HWC)

"""The formats of image files that are read: one list for all sources, and what Pillow may open."""

import functools

from PIL import Image

EXTENSIONS = (
    "jpg", "jpeg", "png", "webp", "jpe", "jfif", "avif", "gif", "bmp", "tif", "tiff", "jp2", "ppm",
    "pgm", "pbm",
)  # fmt: skip
# Pillow knows 43 formats, and starts Ghostscript for EPS. MPO, of phones, is opened as JPEG.
OPENED = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM")


@functools.cache
def pillow() -> tuple[str, ...]:
    """What Pillow may open, of those formats that it was built with."""
    Image.init()
    return tuple(name for name in OPENED if name in Image.OPEN)


def is_image(name: str) -> bool:
    """Whether a file is called as an image is, and is not hidden."""
    base = name.rpartition("/")[2]
    return base.lower().rpartition(".")[2] in EXTENSIONS and not base.startswith(".")

"""The formats of image files that are read: one list for all sources, and what Pillow may open."""

EXTENSIONS = (
    "jpg", "jpeg", "png", "webp", "jpe", "jfif", "avif", "gif", "bmp", "tif", "tiff", "jp2", "ppm",
    "pgm", "pbm",
)  # fmt: skip
# Pillow knows 43 formats, and starts Ghostscript for EPS. MPO is what phones call a JPEG.
PILLOW = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM")


def is_image(name: str) -> bool:
    """Whether a file is called as an image is, and is not hidden."""
    base = name.rpartition("/")[2]
    return base.lower().rpartition(".")[2] in EXTENSIONS and not base.startswith(".")

"""Image files and texts of every kind that comes up, made from a seed."""

import io

import numpy as np
from PIL import Image


def picture(width: int, height: int) -> Image.Image:
    """Smooth colours, edges and a little noise: what a photograph is to a resize."""
    rng = np.random.default_rng(width * height)
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    stripes = 20 * (np.add.outer(np.arange(height), np.arange(width)) % 37 < 18)[..., None]
    noisy = smooth + stripes + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image_files() -> dict[str, bytes]:
    """Files of odd sizes and of every kind that comes up in the wild."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    files = {
        f"JPEG, {width} x {height}": encoded(picture(width, height), quality=90)
        for width, height in [(640, 480), (333, 501), (501, 1999), (97, 61), (224, 224), (225, 223)]
    }
    base = picture(411, 303)
    return files | {
        "JPEG, progressive": encoded(base, progressive=True),
        "JPEG, without subsampling": encoded(base, subsampling=0),
        "JPEG, grey": encoded(base.convert("L")),
        "JPEG, CMYK": encoded(base.convert("CMYK")),
        "JPEG, rotated by EXIF": encoded(base, exif=rotated),
        "PNG": encoded(base, "PNG"),
        "PNG, palette": encoded(base.convert("P"), "PNG"),
        "PNG, palette with transparency": encoded(base.convert("P"), "PNG", transparency=3),
        "PNG, alpha": encoded(base.convert("RGBA").rotate(20), "PNG"),
        "PNG, grey and alpha": encoded(base.convert("LA"), "PNG"),
        "PNG, one bit": encoded(base.convert("1"), "PNG"),
        "WebP": encoded(base, "WEBP"),
        "GIF": encoded(base, "GIF"),
    }


PIECES = (
    "a", "photo", "of", "the", "red", "cat's", "dog", "don't", "we'll", "I'D", "they've", "45.6",
    "&amp;", "&lt;3", "&#39;", "&nbsp;", "&amp;amp;", "&eacute;", "&copy", "&nonsense;",
    "\U0001f600", "\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f",
    "\u4f60\u597d", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155", "\u0645\u0631\u062d\u0628\u0627",
    "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001d4d7",
    "caf\u00e9", "cafe\u0301", "Stra\u00dfe", "\u0130stanbul", "\ufb01ne", "\uff46\uff55\uff4c\uff4c",
    "\x00", "\x07", "\t", "\r\n", "\x1b[0m", "\u200b", "\ufeff", "\u2028", "\u00a0", "\u202e", "\x85",
    "caf\u00c3\u00a9", "\u00e2\u20ac\u2122", "\u201cquote\u201d", "it\u2019s", "\u2026", "'\u017f",
    "<start_of_text>", "<END_OF_TEXT>", "</w>", "a_b", "!!!", "x" * 90,
)  # fmt: skip


def varied_texts(count: int) -> list[str]:
    """Texts of words, entities, emoji, scripts, control characters and random characters."""
    rng = np.random.default_rng(0)

    def piece() -> str:
        if rng.random() < 0.8:
            return PIECES[rng.integers(len(PIECES))]
        top = (0x7F, 0x250, 0x3000, 0xD7FF, 0x1FFFF)[rng.integers(5)]
        points = rng.integers(0x20, top, rng.integers(1, 6))
        return "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)

    lengths = rng.choice([0, 1, 2, 4, 8, 16, 120], count)
    return [(" ", "", "  ")[i % 3].join(piece() for _ in range(n)) for i, n in enumerate(lengths)]

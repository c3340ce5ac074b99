"""Which changed copies of pictures the filter's comparison of pixels finds.

    python benchmarks/pixel_copies.py                          # drawings of the `shapes` dataset
    python benchmarks/pixel_copies.py DIRECTORY --pictures 600     # pictures of a directory

Printed is for each change the share of copies at or above `pixels_above`, the least similarity of all but
1 % of them, and then the highest similarity of two different pictures.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from filter_planted import Drawn
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from clip_jax.curation.filter import FilterConfig
from clip_jax.curation.pixels import FAR, coarse, coarse_similarity, reduce, similarity

AT_ONCE = 512


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def scaled(image: Image.Image, x: float, y: float) -> Image.Image:
    return image.resize((int(x * image.width), int(y * image.height)), Image.Resampling.BICUBIC)


def cut(image: Image.Image, share: float, *, sides: int = 4) -> Image.Image:
    x, y = share * image.width, share * image.height
    if sides == 1:
        return image.crop((0, 0, int(image.width - x), image.height))
    return image.resize(
        image.size, Image.Resampling.BICUBIC, (x, y, image.width - x, image.height - y)
    )


def framed(image: Image.Image, x: float, y: float, color: tuple) -> Image.Image:
    x, y = int(x * image.width), int(y * image.height)
    return ImageOps.expand(image, (x, y), color)


def signed(image: Image.Image) -> Image.Image:
    out = image.copy()
    w, h = image.size
    ImageDraw.Draw(out).rectangle((0.7 * w, 0.92 * h, 0.98 * w, 0.97 * h), fill=(255, 255, 255))
    return out


BLACK, WHITE = (0, 0, 0), (255, 255, 255)
CHANGES = {
    "JPEG of quality 60": lambda x: jpeg(x, 60),
    "JPEG of quality 20": lambda x: jpeg(x, 20),
    "resized to 3/4": lambda x: scaled(x, 0.75, 0.75),
    "resized to 0.3": lambda x: scaled(x, 0.3, 0.3),
    "another shape, 1.5 times as wide": lambda x: scaled(x, 1.5, 1),
    "cropped by 2 % at each side": lambda x: cut(x, 0.02),
    "cropped by 5 % at each side": lambda x: cut(x, 0.05),
    "cropped by 8 % at each side": lambda x: cut(x, 0.08),
    "cropped by 10 % at one side": lambda x: cut(x, 0.1, sides=1),
    "20 % brighter": lambda x: ImageEnhance.Brightness(x).enhance(1.2),
    "30 % darker": lambda x: ImageEnhance.Brightness(x).enhance(0.7),
    "contrast 1.3": lambda x: ImageEnhance.Contrast(x).enhance(1.3),
    "saturation 1.3": lambda x: ImageEnhance.Color(x).enhance(1.3),
    "white frame of 8 %": lambda x: framed(x, 0.08, 0.08, WHITE),
    "black bars of 10 %": lambda x: framed(x, 0, 0.1, BLACK),
    "black bars of 25 %": lambda x: framed(x, 0, 0.25, BLACK),
    "turned by 2 degrees": lambda x: x.rotate(2, Image.Resampling.BICUBIC),
    "a white sign of 1.4 % of the area": signed,
    "grey": lambda x: x.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
}


def pictures(directory: Path | None, count: int) -> list[Image.Image]:
    if directory is None:
        return Drawn(count, 0).pictures
    found = []
    for path in sorted(directory.iterdir()):
        if len(found) < count and path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            found.append(Image.open(path).convert("RGB"))
            found[-1].thumbnail((256, 256))
    return found


def few(pixels_NKSSC: np.ndarray) -> np.ndarray:
    return np.stack([coarse(pixels_NKSSC[:, k]) for k in range(2)], axis=1)


def compare(one_NKSSC: np.ndarray, other_NKSSC: np.ndarray, above: float) -> np.ndarray:
    """As `pixels.check` does it."""
    found = coarse_similarity(few(one_NKSSC), few(other_NKSSC))
    near = np.flatnonzero(found >= above - FAR)
    for first in range(0, len(near), AT_ONCE):
        at = near[first : first + AT_ONCE]
        found[at] = similarity(one_NKSSC[at], other_NKSSC[at])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--pictures", type=int, default=600)
    args = parser.parse_args()
    above = FilterConfig(score_above=0).pixels_above
    originals = pictures(args.directory, args.pictures)
    reduced = np.array([reduce(np.asarray(image)) for image in originals])
    for name, change in CHANGES.items():
        copies = np.array([reduce(np.asarray(change(image))) for image in originals])
        found = compare(copies, reduced, above)
        print(
            f"| {name} | {np.mean(found >= above):6.1%} | {np.quantile(found, 0.01):.3f} |",
            flush=True,
        )
    best = np.zeros(len(reduced))
    for row in range(1, len(reduced)):
        before = np.repeat(reduced[row : row + 1], row, axis=0), reduced[:row]
        best[row] = compare(*before, above).max()
    print(
        f"different pictures: {best.max():.3f} at most, {np.mean(best >= above):.2%} of {len(reduced)} pictures "
        f"at least {above} with one before them"
    )


if __name__ == "__main__":
    main()

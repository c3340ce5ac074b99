"""What is in a source: sizes, caption lengths, duplicates and what cannot be read."""

import concurrent.futures
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
import tqdm
import xxhash
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.data.images import formats as image_formats
from clip_jax.data.images.transforms import ImageError, decode, exif_orientation
from clip_jax.data.loader import cores
from clip_jax.data.samples import BadSample, Source

QUANTILES = (0, 5, 50, 95, 100)  # percent
BLOCK = 4096  # samples that are in work at once


@dataclass(frozen=True)
class Summary:
    """Of the samples that were looked at. Quantiles are at 0, 5, 50, 95 and 100 percent."""

    name: str
    samples: int  # in the source
    looked_at: int
    unreadable: dict[str, int]  # by reason
    first_unreadable: tuple[str, ...]
    formats: dict[str, int]  # image files by format
    image_bytes: tuple[float, ...]  # quantiles
    width: tuple[float, ...]  # pixels, quantiles
    height: tuple[float, ...]  # pixels, quantiles
    caption_characters: tuple[float, ...]  # quantiles
    captions: int  # of all readable samples
    duplicate_images: int  # files that are equal to an earlier one
    duplicate_captions: int  # first captions that are equal to an earlier one
    rotated: int  # images that their EXIF says to turn
    broken_texts: int  # samples of which a caption lost characters that are no text
    notes: tuple[str, ...]  # how the source is read

    def to_text(self) -> str:
        """For a terminal."""
        bad = ", ".join(f"{count} {reason}" for reason, count in self.unreadable.items()) or "none"
        lines = [
            f"{self.name}: {self.samples:_} samples, {self.looked_at:_} looked at",
            f"unreadable           {bad}",
            *(f"                     {entry}" for entry in self.first_unreadable),
            *(f"note                 {note}" for note in self.notes),
            f"formats              {', '.join(f'{count} {kind}' for kind, count in self.formats.items())}",
            f"duplicate images     {self.duplicate_images:_}",
            f"duplicate captions   {self.duplicate_captions:_} (first captions)",
            f"to turn by EXIF      {self.rotated:_}"
            + (" (data.exif_rotation)" if self.rotated else ""),
            f"with broken text     {self.broken_texts:_}",
            f"captions a sample    {self.captions / max(1, sum(self.formats.values())):.2f}",
            "",
            f"{'':20} {'least':>10} {'5 %':>10} {'median':>10} {'95 %':>10} {'most':>10}",
        ]
        for title in ("image_bytes", "width", "height", "caption_characters"):
            values = "".join(f" {value:10_.0f}" for value in getattr(self, title))
            lines.append(f"{title.replace('_', ' '):20}{values}")
        return "\n".join(lines)


def summarize(source: Source, cfg: DataConfig, *, max_samples: int | None = 10_000) -> Summary:
    """Read and decode `max_samples` of the source at even distances, or all where it is None."""
    count = min(len(source), max_samples or len(source))
    indices = np.arange(count) * len(source) // count
    unreadable, formats, first = Counter(), Counter(), []
    images, texts, rows, captions, rotated, broken = Counter(), Counter(), [], 0, 0, 0
    with concurrent.futures.ThreadPoolExecutor(cfg.threads or cores()) as pool:
        looks = (
            look
            for start in range(0, count, BLOCK)  # all at once would be held in memory at once
            for look in pool.map(
                lambda index: _look(source, int(index), cfg.max_image_pixels),
                indices[start : start + BLOCK],
            )
        )
        for look in tqdm.tqdm(looks, total=count, unit="sample", disable=None):
            if isinstance(look, BadSample):
                unreadable[look.reason] += 1
                first += [str(look)] if len(first) < 5 else []
                continue
            kind, digest, sample_captions, row, is_rotated, is_broken = look
            rotated, broken = rotated + is_rotated, broken + is_broken
            formats[kind] += 1
            images[digest] += 1
            for text in sample_captions[:1]:
                texts[xxhash.xxh3_64_intdigest(text.encode())] += 1
            captions += len(sample_captions)
            rows.append(row)
    quantiles = np.percentile(np.array(rows or [(0,) * 4]), QUANTILES, axis=0).T
    return Summary(
        name=source.name,
        samples=len(source),
        looked_at=count,
        unreadable=dict(unreadable),
        first_unreadable=tuple(first),
        formats=dict(formats),
        image_bytes=tuple(quantiles[0]),
        width=tuple(quantiles[1]),
        height=tuple(quantiles[2]),
        caption_characters=tuple(quantiles[3]),
        captions=captions,
        duplicate_images=sum(images.values()) - len(images),
        duplicate_captions=sum(texts.values()) - len(texts),
        rotated=rotated,
        broken_texts=broken,
        notes=tuple(getattr(source, "notes", ())),
    )


def _look(source: Source, index: int, max_pixels: int):
    try:
        sample = source[index]
    except BadSample as error:
        return error
    try:
        height, width, _ = decode(sample.image, max_pixels=max_pixels).shape
    except ImageError as error:
        return BadSample(error.reason, key=sample.key, shard=sample.shard)
    kind = Image.open(io.BytesIO(sample.image), formats=image_formats.pillow()).format
    digest = xxhash.xxh3_64_intdigest(sample.image)
    row = (len(sample.image), width, height, len("".join(sample.captions[:1])))
    rotated = exif_orientation(sample.image) != 1
    return kind, digest, sample.captions, row, rotated, sample.had_broken_text

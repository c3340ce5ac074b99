"""A contact sheet of a source: one HTML page with pictures, captions and what is bad."""

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.data.images.transforms import ImageError, decode
from clip_jax.data.samples import BadSample, Sample, Source
from clip_jax.data.shuffle import hash64, permute
from clip_jax.redaction import redact

SIDE = 192  # pixels of the longer side of a picture

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 12px; }}
figure {{ margin: 0; padding: 8px; border: 1px solid #8884; border-radius: 6px; }}
img {{ display: block; max-width: 100%; max-height: {side}px; margin: 0 auto 6px; }}
figcaption {{ overflow-wrap: anywhere; }}
small {{ color: #888; }}
.bad {{ border-color: #c33; }} .bad strong {{ color: #c33; }}
</style></head><body>
<h1>{title}</h1><p>{lead}</p>
<main>
{cards}
</main></body></html>
"""


def preview(
    source: Source, cfg: DataConfig, path: str | Path, *, count: int = 100, seed: int = 0
) -> Path:
    """Write `count` samples of the source, drawn with `seed`, as a page that needs no other file."""
    count = min(count, len(source))
    indices = permute(np.arange(count), len(source), hash64(seed)).tolist()
    cards, bad = [], 0
    for index in indices:
        try:
            cards.append(_card(source, index, cfg))
        except BadSample as error:
            bad += 1
            reason, key = html.escape(error.reason), html.escape(error.key)
            cards.append(
                f'<figure class="bad"><strong>{reason}</strong><br><small>{key}</small></figure>'
            )
    lead = f"{count:_} of {len(source):_} samples" + (f", {bad} of them unreadable" if bad else "")
    title = html.escape(redact(source.name))
    page = PAGE.format(title=title, lead=lead, cards="\n".join(cards), side=SIDE)
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path


def thumbnail(
    sample: Sample, cfg: DataConfig, *, side: int = SIDE, quality: int = 85
) -> tuple[str, tuple[int, int]]:
    """A sample's image as a data URL of a small JPEG, and its height and width in full.

    Raises:
      BadSample: the image cannot be decoded.
    """
    try:
        pixels_HWC = decode(
            sample.image, max_pixels=cfg.max_image_pixels, exif_rotation=cfg.exif_rotation
        )
    except ImageError as error:
        raise BadSample(error.reason, key=sample.key, shard=sample.shard) from error
    image = Image.fromarray(pixels_HWC)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    data = base64.b64encode(file.getvalue()).decode()
    return f"data:image/jpeg;base64,{data}", pixels_HWC.shape[:2]


def _card(source: Source, index: int, cfg: DataConfig) -> str:
    sample = source[index]
    data, (height, width) = thumbnail(sample, cfg)
    captions = "<br>".join(html.escape(text) for text in sample.captions)
    about = (
        f"{html.escape(redact(sample.key))} · {width}×{height} · {len(sample.image) / 1024:.0f} KiB"
    )
    if sample.label is not None:
        names = source.classes or ()
        named = sample.label < len(names)
        about += f" · {html.escape(names[sample.label]) if named else f'class {sample.label}'}"
    return (
        f'<figure><img alt="" src="{data}">'
        f"<figcaption>{captions}<br><small>{about}</small></figcaption></figure>"
    )

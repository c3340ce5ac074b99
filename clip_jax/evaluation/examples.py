"""A few retrievals to look at: what a caption finds, what an image finds, and both side by side."""

import base64
import io
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from clip_jax.data.images.transforms import ImageError, decode
from clip_jax.data.samples import BadSample, Source
from clip_jax.evaluation.annotations import Annotation
from clip_jax.runs.results import (
    CaptionQuery,
    CloseUp,
    Examples,
    FoundCaption,
    FoundImage,
    ImageQuery,
)

QUERIES = 6  # in each direction
FOUND = 5  # answers shown of each query
CLOSE_UP = 8  # pairs whose cosines are all shown
THUMBNAIL = 160  # pixels on the longer side


def choose_examples(
    z_image_NE: np.ndarray,
    z_text_ME: np.ndarray,
    image_of_text_M: np.ndarray,
    captions: Sequence[str],
    annotations: Sequence[Annotation],
    source: Source,
    max_pixels: int,
) -> Examples:
    """Draw some captions and images and look at what they find.

    Args:
      z_image_NE: (images, embedding) unit vectors.
      z_text_ME: (captions, embedding) unit vectors.
      image_of_text_M: (captions,) the row of `z_image_NE` that each belongs to.
      captions: the texts of `z_text_ME`.
      annotations: of the images, in the order of `z_image_NE`.
      source: where the pictures come from.
      max_pixels: of an image; larger ones get no picture.
    """
    groups = [annotations[n].group for n in image_of_text_M]
    drawn = _distinct_pairs(image_of_text_M, captions, groups, 2 * QUERIES)
    by_caption, by_image = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    caption_queries = tuple(
        CaptionQuery(
            caption=captions[m],
            image=annotations[image_of_text_M[m]].index,
            group=annotations[image_of_text_M[m]].group,
            found=_images_found(captions[m], z_image_NE @ z_text_ME[m], annotations),
        )
        for m in by_caption or by_image
    )
    image_queries = tuple(
        ImageQuery(
            image=annotations[n].index,
            group=annotations[n].group,
            found=_captions_found(annotations[n], z_text_ME @ z_image_NE[n], captions),
        )
        for n in (image_of_text_M[m] for m in by_image)
    )
    pairs = drawn[:CLOSE_UP]
    columns = image_of_text_M[pairs]
    close_up = CloseUp(
        images=tuple(annotations[n].index for n in columns),
        captions=tuple(captions[m] for m in pairs),
        cosines=tuple(map(tuple, (z_text_ME[pairs] @ z_image_NE[columns].T).tolist())),
    )
    named = {*close_up.images}
    named |= {query.image for query in (*caption_queries, *image_queries)}
    named |= {found.image for query in caption_queries for found in query.found}
    return Examples(
        caption_queries=caption_queries,
        image_queries=image_queries,
        close_up=close_up,
        pictures=pictures(source, sorted(named), max_pixels),
    )


def _distinct_pairs(
    image_of_text_M, captions: Sequence[str], groups: Sequence[str | None], wanted: int
) -> list[int]:
    """Captions drawn at random, no text and no image twice, from each group in turn."""
    texts, images = set(), set()
    by_group: dict[str | None, list[int]] = {}
    for m in np.random.default_rng(0).permutation(len(captions)).tolist():
        chosen = by_group.setdefault(groups[m], [])
        new = captions[m] not in texts and image_of_text_M[m] not in images
        if new and len(chosen) < wanted:
            chosen.append(m)
            texts.add(captions[m])
            images.add(image_of_text_M[m])
    in_turn = itertools.zip_longest(*(by_group[group] for group in sorted(by_group, key=str)))
    return [m for turn in in_turn for m in turn if m is not None][:wanted]


def _images_found(caption: str, score_N: np.ndarray, annotations) -> tuple[FoundImage, ...]:
    best = np.argsort(-score_N, kind="stable")[:FOUND]
    return tuple(
        FoundImage(
            image=annotations[n].index,
            score=float(score_N[n]),
            right=caption in annotations[n].captions,
        )
        for n in best
    )


def _captions_found(annotation: Annotation, score_M: np.ndarray, captions: Sequence[str]):
    best: dict[str, float] = {}
    for m in np.argsort(-score_M, kind="stable"):
        # A caption that several images share would else fill all places.
        best.setdefault(captions[m], float(score_M[m]))
        if len(best) == FOUND:
            break
    return tuple(
        FoundCaption(caption=caption, score=score, right=caption in annotation.captions)
        for caption, score in best.items()
    )


def pictures(
    source: Source, indices: Sequence[int], max_pixels: int, *, side: int = THUMBNAIL
) -> dict[int, str]:
    """Small copies of images as data URIs; unreadable ones are skipped."""
    found = {}
    for index in indices:
        try:
            pixels_HWC = decode(source[index].image, max_pixels=max_pixels)
        except (BadSample, ImageError, OSError):
            continue
        image = Image.fromarray(pixels_HWC)
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=85)
        found[index] = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found

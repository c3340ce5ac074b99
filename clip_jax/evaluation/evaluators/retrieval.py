"""Does an image find its captions among all captions, and a caption its image among all images?"""

import logging
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax.evaluation.annotations import Annotation
from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.evaluation.examples import choose_examples
from clip_jax.evaluation.ranking import ROWS, rank
from clip_jax.runs.results import Evaluation

log = logging.getLogger(__name__)

KS = (1, 5, 10)
DIRECTIONS = ("text_to_image", "image_to_text")


def measure(data: Embedded) -> Evaluation:
    """The metrics of `retrieval`, with some examples for the report in process 0."""
    row_N, annotations, image_of_text_M = distinct_images(data)
    pairs = data.z_image_NE[row_N], data.z_text_ME, image_of_text_M
    metrics = retrieval(*pairs, mesh=data.encoder.mesh, should_stop=data.should_stop)
    examples = None
    if jax.process_index() == 0:
        limit = data.data.max_image_pixels
        examples = choose_examples(*pairs, data.captions, annotations, data.source, limit)
    return Evaluation(metrics=metrics, examples=examples)


def distinct_images(data: Embedded) -> tuple[np.ndarray, list[Annotation], np.ndarray]:
    """The rows of `z_image_NE` without those of a file that came before, bit for bit.

    Shards have the image of each of five pairs again. With `data.group_rows` all five captions are right
    for it, as where the rows of a list name one file.

    Returns:
      Rows, their annotations with all captions of the file, and (captions,) which of these rows each
      caption of the data set belongs to.
    """
    if not data.data.group_rows:
        return np.arange(len(data.annotations)), list(data.annotations), data.image_of_text_M
    place_of: dict[object, int] = {}
    rows, found, place_N = [], [], []
    for row, annotation in enumerate(data.annotations):
        key = ("row", row) if annotation.image is None else annotation.image
        place = place_of.setdefault(key, len(rows))
        if place == len(rows):
            rows.append(row)
            found.append(annotation)
        else:
            captions = (*found[place].captions, *annotation.captions)
            found[place] = found[place]._replace(captions=captions)
        place_N.append(place)
    if len(rows) < len(place_N):
        log.warning(
            "%s: %d samples are %d images, each with all of its captions, in retrieval; "
            "data.group_rows=False keeps them apart",
            *(data.source.name, len(place_N), len(rows)),
        )
    return np.array(rows), found, np.array(place_N)[data.image_of_text_M]


def retrieval(
    z_image_NE: np.ndarray,
    z_text_ME: np.ndarray,
    image_of_text_M: np.ndarray,
    *,
    mesh: Mesh,
    rows: int = ROWS,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Recall and ranks both ways, for any number of captions an image.

    Recall at k is the share of queries that have a right answer among their first k. An image that
    has several captions needs one of them; an image without a caption is no query, but can still
    be found. Only the pairs of the data set are right: another image with the very same caption is
    wrong. Ties are shared out, see `Ranks`.

    Args:
      z_image_NE: (images, embedding) of unit length.
      z_text_ME: (captions, embedding) of unit length.
      image_of_text_M: (captions,) which row of `z_image_NE` each caption belongs to.
      mesh, rows, should_stop: see `rank`.

    Returns:
      For each direction, "text_to_image" and "image_to_text": "..._recall_at_1", "_5" and "_10",
      each with "..._recall_at_1_chance", what guessing would reach, and "..._mean_rank" and
      "..._median_rank", where 1 is the best. "recall_at_1" is the mean of both directions, which
      DataComp (arXiv:2304.14108) reports of Flickr30k and COCO.
    """
    N = len(z_image_NE)
    captions_N = np.bincount(image_of_text_M, minlength=N)
    asking_Q = np.flatnonzero(captions_N)
    everything = {"mesh": mesh, "rows": rows, "should_stop": should_stop}
    directions = {
        "text_to_image": (
            rank(z_text_ME, image_of_text_M, z_image_NE, np.arange(N), **everything),
            lambda k: min(k / N, 1.0),
        ),
        "image_to_text": (
            rank(z_image_NE[asking_Q], asking_Q, z_text_ME, image_of_text_M, **everything),
            lambda k: _chance(captions_N[asking_Q], len(z_text_ME), k),
        ),
    }
    metrics = {}
    for name, (ranks, chance) in directions.items():
        for k in KS:
            metrics[f"{name}_recall_at_{k}"] = float(ranks.found(k).mean())
            metrics[f"{name}_recall_at_{k}_chance"] = chance(k)
        metrics[f"{name}_mean_rank"] = float(ranks.expected().mean())
        metrics[f"{name}_median_rank"] = float(np.median(ranks.expected()))
    metrics["recall_at_1"] = float(np.mean([metrics[f"{way}_recall_at_1"] for way in DIRECTIONS]))
    return metrics


def _chance(captions_Q: np.ndarray, M: int, k: int) -> float:
    """How often k of M captions, drawn at random, hold one of an image's own."""
    counts, times = np.unique(captions_Q, return_counts=True)
    missed = [math.comb(M - int(own), k) / math.comb(M, k) if k < M else 0.0 for own in counts]
    return float(1 - np.average(missed, weights=times))


RETRIEVAL = Evaluator(
    measure=measure,
    metrics={f"{way}_recall_at_{k}": "higher" for way in DIRECTIONS for k in KS}
    | {"recall_at_1": "higher"}
    | {f"{way}_{kind}_rank": "lower" for way in DIRECTIONS for kind in ("mean", "median")},
    needs=("captions",),
    headline="text_to_image_recall_at_1",
)

"""Classification of images that show several classes: mean average precision."""

import numpy as np

from clip_jax.evaluation.encode import check_stop
from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.runs.results import ClassResult, Evaluation


def measure(data: Embedded) -> Evaluation:
    """Average precision of each class, and its mean over the classes that an image shows."""
    assert data.classes is not None
    rows = [n for n, annotation in enumerate(data.annotations) if annotation.labels is not None]
    labels = [data.annotations[n].labels or () for n in rows]
    data.check_labels(max((max(each) for each in labels if each), default=0))
    z_image_NE, found = data.z_image_NE[rows], []
    for label, name in enumerate(data.classes):
        check_stop(data.should_stop)
        shown_N = np.array([label in each for each in labels])
        if shown_N.any():
            value = average_precision(z_image_NE @ data.z_class_SE[label], shown_N)
            found.append(
                ClassResult(name=name, group=None, images=int(shown_N.sum()), accuracy=value)
            )
    if not found:
        raise ValueError(f"{data.source.name} has classes and no image that shows one of them")
    mean = float(np.mean([each.accuracy for each in found]))
    return Evaluation(metrics={"multilabel_map": mean}, classes=tuple(found))


def average_precision(score_N: np.ndarray, right_N: np.ndarray) -> float:
    """The mean precision at the places of the right images, sorted by score.

    As in PASCAL VOC since 2010 (Everingham et al., 2015, section 3.2), without interpolation.
    Images of equal score come at once: the precision is that after the last of them.

    Args:
      score_N: (images,) of a class.
      right_N: (images,) bool, True for at least one.
    """
    order = np.argsort(-score_N, kind="stable")
    score_N, right_N = score_N[order], right_N[order]
    last_N = np.append(score_N[1:] != score_N[:-1], True)  # the last one of each score
    right_so_far_N = np.cumsum(right_N)
    precision = right_so_far_N[last_N] / (np.flatnonzero(last_N) + 1)
    new_right = np.diff(right_so_far_N[last_N], prepend=0)
    return float(np.sum(precision * new_right) / right_N.sum())


MULTILABEL = Evaluator(
    measure=measure,
    metrics={"multilabel_map": "higher"},
    needs=("labels",),
    headline="multilabel_map",
)

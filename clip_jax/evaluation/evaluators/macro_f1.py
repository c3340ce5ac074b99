"""Macro F1 of zero-shot classification: rare classes count as much as common ones."""

import numpy as np

from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.runs.results import Evaluation


def measure(data: Embedded) -> Evaluation:
    """F1 of the predicted classes, averaged over the classes that have images."""
    return Evaluation(metrics={"zero_shot_macro_f1": macro_f1(data.label_N, data.predicted_N)})


def macro_f1(label_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """The mean over classes of the harmonic mean of precision and recall.

    F1 of a class is 2 TP / (2 TP + FP + FN), and 0 where it is never predicted. Classes without an
    image are left out, as in WILDS (arXiv:2012.07421), whose iWildCam is measured by it.

    Args:
      label_N: (images,) the right class of each.
      predicted_N: (images,) the class that the model gives.
    """
    count = int(max(label_N.max(), predicted_N.max())) + 1
    images_S = np.bincount(label_N, minlength=count)
    predicted_S = np.bincount(predicted_N, minlength=count)
    right_S = np.bincount(label_N[label_N == predicted_N], minlength=count)
    occurs_S = images_S > 0
    return float(np.mean(2 * right_S[occurs_S] / (images_S + predicted_S)[occurs_S]))


MACRO_F1 = Evaluator(
    measure=measure,
    metrics={"zero_shot_macro_f1": "higher"},
    needs=("classes",),
    headline="zero_shot_macro_f1",
)

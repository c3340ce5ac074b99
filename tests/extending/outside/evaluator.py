"""A measurement that the tree does not have: how far images and texts lie apart."""

import numpy as np

from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.runs.results import Evaluation


def measure(data: Embedded) -> Evaluation:
    """The distance between the mean image and the mean text (arXiv:2203.02053)."""
    gap_E = data.z_image_NE.mean(axis=0) - data.z_text_ME.mean(axis=0)
    return Evaluation(metrics={"modality_gap": float(np.linalg.norm(gap_E))})


GAP = Evaluator(
    measure=measure,
    metrics={"modality_gap": "lower"},
    needs=("captions",),
    headline="modality_gap",
)

"""Which images of several go with a cue: the Jaccard index of WinoGAViL."""

import numpy as np

from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.runs.results import Evaluation

SIZES = {"5_6": range(5, 7), "10_12": range(10, 13)}  # candidates, as the paper reports them


def measure(data: Embedded) -> Evaluation:
    """The mean Jaccard index of all questions, and of those with few and with many candidates.

    WinoGAViL, arXiv:2207.12576: of the candidates the model takes as many as are associated with
    the cue, those with the highest cosines.
    """
    found = [
        (len(question.images), jaccard(scores_IT[:, 0], {image for image, _ in question.right}))
        for question, scores_IT in data.question_scores()
    ]
    metrics = {"jaccard": float(np.mean([score for _, score in found]))}
    for name, sizes in SIZES.items():
        own = [score for size, score in found if size in sizes]
        metrics |= {f"jaccard_{name}": float(np.mean(own))} if own else {}
    return Evaluation(metrics=metrics)


def jaccard(score_I: np.ndarray, right: set[int]) -> float:
    """|A and B| / |A or B|, A the right images and B as many with the highest scores."""
    taken = set(np.argsort(-score_I, kind="stable")[: len(right)].tolist())
    return len(taken & right) / len(taken | right)


ASSOCIATION = Evaluator(
    measure=measure,
    metrics={"jaccard": "higher"} | {f"jaccard_{size}": "higher" for size in SIZES},
    needs=("questions",),
    headline="jaccard",
)

"""Zero-shot accuracy where it is worst: the lowest of all groups of the data set."""

from collections.abc import Sequence

import numpy as np

from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.runs.results import Evaluation


def measure(data: Embedded) -> Evaluation:
    """The lowest top-1 and top-5 accuracy of a group; images without a group are left out."""
    ranks = data.class_ranks
    found = {
        f"zero_shot_worst_group_top{k}": worst_group(ranks.found(k), data.groups) for k in (1, 5)
    }
    return Evaluation(metrics=found)


def worst_group(score_N: np.ndarray, groups: Sequence[str | None]) -> float:
    """The lowest mean score of a group (worst-group accuracy, arXiv:1911.08731).

    Args:
      score_N: (images,) such as whether the class was found.
      groups: the group of each image; None: it is in none.
    """
    named = sorted({group for group in groups if group is not None})
    return min(
        float(np.mean(score_N[np.array([other == group for other in groups])])) for group in named
    )


WORST_GROUP = Evaluator(
    measure=measure,
    metrics={f"zero_shot_worst_group_top{k}": "higher" for k in (1, 5)},
    needs=("classes", "groups"),
    headline="zero_shot_worst_group_top1",
)

"""Classification without training for it: the class whose prompts lie nearest to the image."""

from collections.abc import Sequence

import numpy as np

from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.evaluation.ranking import Ranks
from clip_jax.runs.results import ClassResult, Evaluation

FIGURES = ("top1", "top5", "mean_per_class")


def measure(data: Embedded) -> Evaluation:
    """Accuracies on the images that have a label, and the result of each class."""
    label_N, groups, ranks = data.label_N, data.groups, data.class_ranks
    assert data.classes is not None
    found = zero_shot(ranks, label_N, groups) | {"chance": 1 / len(data.classes)}
    classes = tuple(
        ClassResult(
            name=data.classes[label],
            group=_common([group for group, other in zip(groups, label_N) if other == label]),
            images=int((label_N == label).sum()),
            accuracy=accuracy,
        )
        for label, accuracy in class_accuracy(ranks.found(1), label_N).items()
    )
    metrics = {f"zero_shot_{name.replace('/', '_')}": value for name, value in found.items()}
    return Evaluation(metrics=metrics, classes=classes)


def _common(groups: Sequence[str | None]) -> str | None:
    """The group that all are in; None where they differ."""
    return groups[0] if len(set(groups)) == 1 else None


def zero_shot(
    ranks: Ranks, label_N: np.ndarray, groups: Sequence[str | None] | None = None
) -> dict[str, float]:
    """Accuracies of classification.

    Args:
      ranks: of the right class among all classes; ties are shared out, see `Ranks`.
      label_N: (images,) the right class of each.
      groups: for each image the group that it is also counted in; None: in no group.

    Returns:
      "top1" and "top5", the shares of images whose class comes first or among the first five;
      "mean_per_class", top-1 averaged over the classes that have images, however many they have;
      and all three for each group, as "GROUP/top1" and so on.
    """
    top1_N, top5_N = ranks.found(1), ranks.found(5)

    def accuracies(chosen) -> dict[str, float]:
        by_class = class_accuracy(top1_N[chosen], label_N[chosen])
        return {
            "top1": float(top1_N[chosen].mean()),
            "top5": float(top5_N[chosen].mean()),
            "mean_per_class": float(np.mean(list(by_class.values()))),
        }

    metrics = accuracies(slice(None))
    for group in sorted({group for group in groups or () if group is not None}):
        chosen = np.array([other == group for other in groups])
        metrics |= {f"{group}/{name}": value for name, value in accuracies(chosen).items()}
    return metrics


def class_accuracy(top1_N: np.ndarray, label_N: np.ndarray) -> dict[int, float]:
    """Top-1 accuracy of each class that has images."""
    images_S = np.bincount(label_N)
    right_S = np.bincount(label_N, weights=top1_N)
    return {int(s): float(right_S[s] / images_S[s]) for s in np.flatnonzero(images_S)}


ZERO_SHOT = Evaluator(
    measure=measure,
    metrics={f"zero_shot_{group}{name}": "higher" for group in ("", "*_") for name in FIGURES},
    needs=("classes",),
    headline="zero_shot_top1",
)

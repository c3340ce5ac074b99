"""Classification without training for it: the class whose prompts lie nearest to the image."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.evaluation.ranking import Ranks, rank
from clip_jax.runs.results import ClassResult, Evaluation

# OpenAI's selection out of 80 for ImageNet, in its notebook "Prompt_Engineering_for_ImageNet".
SIMPLE_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
TEXTS_AT_ONCE = 8192  # prompts that are in host memory as tokens and embeddings
FIGURES = ("top1", "top5", "mean_per_class")


def measure(data: Embedded) -> Evaluation:
    """Accuracies on the images that have a label, and the result of each class."""
    chosen = [n for n, annotation in enumerate(data.annotations) if annotation.label is not None]
    label_N = np.array([data.annotations[n].label for n in chosen])
    groups = [data.annotations[n].group for n in chosen]
    _check_labels(data, label_N)
    z_class_SE = class_embeddings(
        data.encoder, data.tokenizer, data.classes, data.templates, should_stop=data.should_stop
    )
    ranks = zero_shot_ranks(
        data.z_image_NE[chosen],
        label_N,
        z_class_SE,
        mesh=data.encoder.mesh,
        should_stop=data.should_stop,
    )
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


def _check_labels(data: Embedded, label_N: np.ndarray):
    if not len(label_N):
        raise ValueError(
            f"{data.source.name} has classes but no sample with a label: take zero_shot out of "
            "evaluation.metrics, or evaluate on data with labels"
        )
    if label_N.max() >= len(data.classes):
        named = f"evaluation.classes={data.cfg.classes}" if data.cfg.classes else data.source.name
        raise ValueError(
            f"{named} names {len(data.classes)} classes, but there are labels up to "
            f"{label_N.max()}: name every class, in the order of the labels, the first being 0"
        )


def _common(groups: Sequence[str | None]) -> str | None:
    """The group that all are in; None where they differ."""
    return groups[0] if len(set(groups)) == 1 else None


def class_embeddings(
    encoder: Encoder,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    classes: Sequence[str],
    templates: Sequence[str] = SIMPLE_TEMPLATES,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """One unit vector a class: the mean of its prompts' unit vectors, divided by its length.

    Args:
      encoder: of the model.
      tokenizer: gives (texts, length) int32.
      classes: names, such as "red circle".
      templates: prompts with {} where the name goes.
      should_stop: asked before each batch.

    Returns:
      (classes, embedding) float32.
    """
    at_once = max(1, TEXTS_AT_ONCE // len(templates))
    means = []
    for start in range(0, len(classes), at_once):
        names = classes[start : start + at_once]
        prompts = [template.replace("{}", name) for name in names for template in templates]
        z_ME = encoder.encode_texts(tokenizer(prompts), should_stop=should_stop)
        means.append(z_ME.reshape(len(names), len(templates), -1).mean(axis=1))
    z_SE = np.concatenate(means)
    return z_SE / np.maximum(np.linalg.norm(z_SE, axis=1, keepdims=True), 1e-12)


def zero_shot_ranks(
    z_image_NE: np.ndarray,
    label_N: np.ndarray,
    z_class_SE: np.ndarray,
    *,
    mesh: Mesh,
    should_stop: Callable[[], bool] | None = None,
) -> Ranks:
    """At which place the right class comes for each image. Ties are shared out, see `Ranks`."""
    classes = np.arange(len(z_class_SE))
    return rank(z_image_NE, label_N, z_class_SE, classes, mesh=mesh, should_stop=should_stop)


def zero_shot(
    ranks: Ranks, label_N: np.ndarray, groups: Sequence[str | None] | None = None
) -> dict[str, float]:
    """Accuracies of classification.

    Args:
      ranks: of `zero_shot_ranks`.
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


def read_classes(path: str) -> tuple[str, ...]:
    """Class names from a text file, one a line, in the order of the labels."""
    return _read_lines(path, "evaluation.classes", "the name of a class")


def read_templates(path: str) -> tuple[str, ...]:
    """Prompt templates from a text file, one a line, each with {} for the class name."""
    templates = _read_lines(path, "evaluation.templates", "a prompt such as: a photo of a {}.")
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"evaluation.templates={path}: the prompt {template!r} has no {{}}; "
                "put {} where the class name goes"
            )
    return templates


def _read_lines(path: str, setting: str, content: str) -> tuple[str, ...]:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{setting}={path}: there is no such file")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}={path} is not a text file in UTF-8: {error}") from error
    # Not splitlines(): that would also split at characters which a name may hold.
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise ValueError(f"{setting}={path} is empty: write on each line {content}")
    return lines


ZERO_SHOT = Evaluator(
    measure=measure,
    metrics={f"zero_shot_{group}{name}": "higher" for group in ("", "*_") for name in FIGURES},
    needs=("classes",),
    headline="zero_shot_top1",
)

"""Choices between captions and images that differ in little: Winoground and its relatives."""

import math

import numpy as np

from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.runs.results import Evaluation

SCORES = ("text", "image", "group")


def measure(data: Embedded) -> Evaluation:
    """The share of questions that are answered right, also for each group of questions.

    The text score asks of every image for its text, the image score of every text for its image,
    and the group score for both (Winoground, arXiv:2204.03162). Questions of one image and several
    texts have a text score alone (SugarCrepe, arXiv:2306.14610; ARO, arXiv:2210.01936). The image
    score is what MMVP-VLM reports (arXiv:2401.06209). "macro" is the mean of the groups, as ARO reports
    of relations and attributes.
    """
    answers = [(q, answered(scores, q.right)) for q, scores in data.question_scores()]
    two_ways = all(len(question.images) > 1 for question, _ in answers)
    names = SCORES if two_ways else SCORES[:1]
    metrics = {"choice_questions": float(len(answers))}
    for name in names:
        metrics[f"choice_{name}"] = float(np.mean([found[name] for _, found in answers]))
    text = [math.prod([1 / len(q.texts)] * len(q.right)) for q, _ in answers]
    metrics["choice_text_chance"] = float(np.mean(text))
    groups = sorted({q.group for q, _ in answers if q.group is not None})
    for group in groups:
        own = [found for question, found in answers if question.group == group]
        metrics |= {
            f"choice_{group}_{name}": float(np.mean([f[name] for f in own])) for name in names
        }
    for name in names if groups else ():
        metrics[f"choice_macro_{name}"] = float(
            np.mean([metrics[f"choice_{g}_{name}"] for g in groups])
        )
    return Evaluation(metrics=metrics)


def answered(scores_IT: np.ndarray, right: tuple[tuple[int, int], ...]) -> dict[str, bool]:
    """Whether the right pairs have the highest scores of their rows, columns, and both.

    A tie is no right answer, as in Winoground.

    Args:
      scores_IT: (images, texts) cosines of a question (axes I and T).
      right: pairs of an image and a text that belong together.
    """

    def best(score: float, others: np.ndarray) -> bool:
        return bool((others >= score).sum() == 1)  # itself alone

    text = all(best(scores_IT[i, t], scores_IT[i]) for i, t in right)
    image = all(best(scores_IT[i, t], scores_IT[:, t]) for i, t in right)
    return {"text": text, "image": image, "group": text and image}


CHOICE = Evaluator(
    measure=measure,
    metrics={f"choice_{group}{name}": "higher" for group in ("", "*_") for name in SCORES},
    needs=("questions",),
    headline="choice_text",
)

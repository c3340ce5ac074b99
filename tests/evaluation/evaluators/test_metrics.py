"""Metrics against slow references that are written from their definitions."""

import dataclasses
import itertools
import types

import numpy as np
import pytest

from clip_jax.config import DataConfig, EvaluationConfig, LossConfig
from clip_jax.data.samples import Question
from clip_jax.evaluation.evaluators import choice
from clip_jax.evaluation.evaluators.association import jaccard
from clip_jax.evaluation.evaluators.choice import answered
from clip_jax.evaluation.evaluators.macro_f1 import macro_f1
from clip_jax.evaluation.evaluators.multilabel import average_precision
from clip_jax.evaluation.evaluators.worst_group import worst_group
from clip_jax.evaluation.ranking import nearest
from clip_jax.evaluation.suite import Evaluators


def slow_f1(label_N, predicted_N, label):
    right = sum(a == b == label for a, b in zip(label_N, predicted_N))
    precision = right / max(1, sum(b == label for b in predicted_N))
    recall = right / sum(a == label for a in label_N)
    return 2 * precision * recall / (precision + recall) if right else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1_is_the_mean_of_harmonic_means_over_classes_with_images(seed):
    rng = np.random.default_rng(seed)
    label_N, predicted_N = rng.integers(0, 6, 40), rng.integers(0, 9, 40)
    classes = sorted(set(label_N.tolist()))
    expected = np.mean([slow_f1(label_N, predicted_N, label) for label in classes])
    assert macro_f1(label_N, predicted_N) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_the_mean_precision_at_the_right_places(seed):
    rng = np.random.default_rng(seed)
    score_N, right_N = rng.normal(size=30), rng.random(30) < 0.3
    right_N[3] = True
    order = sorted(range(30), key=lambda n: -score_N[n])
    at_right = [
        np.mean([right_N[n] for n in order[: place + 1]])
        for place in range(30)
        if right_N[order[place]]
    ]
    assert average_precision(score_N, right_N) == pytest.approx(np.mean(at_right))


def test_images_of_equal_score_are_in_no_order():
    right_N = np.array([True, False, False, True])
    for order in itertools.permutations(range(4)):
        assert average_precision(np.zeros(4), right_N[list(order)]) == pytest.approx(0.5)


def test_the_worst_group_is_the_lowest_and_who_is_in_none_does_not_count():
    score_N = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    assert worst_group(score_N, ["a", "a", "b", "b", None]) == pytest.approx(0.5)
    assert worst_group(score_N, ["a", "b", "a", "c", "c"]) == 0.0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([[0.9, 0.1], [0.2, 0.8]], (True, True, True)),
        ([[0.9, 0.1], [0.95, 0.96]], (True, False, False)),
        ([[0.5, 0.6], [0.2, 0.9]], (False, True, False)),
        ([[0.5, 0.5], [0.2, 0.9]], (False, True, False)),  # a tie is no answer
        ([[0.1, 0.9], [0.9, 0.1]], (False, False, False)),
    ],
)
def test_a_choice_is_right_where_both_images_and_both_texts_find_each_other(scores, expected):
    found = answered(np.array(scores), ((0, 0), (1, 1)))
    assert (found["text"], found["image"], found["group"]) == expected


def test_the_macro_score_counts_every_group_alike():
    right, wrong = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    asked = [("a", right), ("a", wrong), ("a", wrong), ("b", right), (None, wrong)]
    scores = [
        (Question((0,), ("x", "y"), ((0, 0),), group=group), scores_IT)
        for group, scores_IT in asked
    ]
    found = choice.measure(types.SimpleNamespace(question_scores=lambda: scores)).metrics
    assert (found["choice_a_text"], found["choice_b_text"]) == (pytest.approx(1 / 3), 1.0)
    assert found["choice_macro_text"] == pytest.approx(2 / 3)
    assert found["choice_text"] == pytest.approx(2 / 5)


def test_jaccard_compares_as_many_images_as_are_right():
    score_I = np.array([0.1, 0.9, 0.5, 0.7, 0.2])
    assert jaccard(score_I, {1, 3}) == 1.0
    assert jaccard(score_I, {0, 3}) == pytest.approx(1 / 3)
    assert jaccard(score_I, {0, 4}) == 0.0


def test_nearest_finds_what_sorting_all_scores_finds(mesh, unit):
    z_query_QE, z_gallery_GE = unit(0, 37, 8), unit(1, 19, 8)
    scores, rows = nearest(z_query_QE, z_gallery_GE, 3, mesh=mesh, rows=2)
    all_QG = z_query_QE @ z_gallery_GE.T
    np.testing.assert_array_equal(rows, np.argsort(-all_QG, axis=1)[:, :3])
    np.testing.assert_allclose(scores, np.sort(all_QG, axis=1)[:, :-4:-1], rtol=1e-5)


class Asking:
    """A source of colored squares with questions about them."""

    def __init__(self, source, questions, *, several_labels=False):
        self._source, self.questions = source, tuple(questions)
        self._several_labels = several_labels
        self.name, self.fingerprint = "asking", source.fingerprint
        self.classes, self.templates = source.classes, source.templates

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        sample = self._source[index]
        if not self._several_labels:
            return sample
        labels = tuple(sorted({sample.label, index % 2}))
        return dataclasses.replace(sample, label=None, labels=labels)


def evaluate(source, model, variables, mesh, tokenizer, *names):
    measure = Evaluators(
        source, {}, model, mesh, tokenizer,
        cfg=EvaluationConfig(batch_size=8, metrics=names),
        data=DataConfig(threads=1, max_bad_share=0.5),
        loss=LossConfig(),
    )  # fmt: skip
    return measure(variables)


def test_questions_are_answered_by_cosines_and_those_with_a_bad_image_are_left_out(
    memory_source, model, variables, mesh, tokenizer
):
    texts = ("a red square", "a green square")
    pairs = [Question((i, i + 1), texts, ((0, 0), (1, 1)), group="even" if i % 2 == 0 else None)
             for i in range(8)]  # fmt: skip
    source = Asking(memory_source(12, bad=(8,)), pairs)
    found = evaluate(source, model, variables, mesh, tokenizer, "choice").metrics
    assert found["eval/choice_questions"] == 7  # not the one with image 8
    assert found["eval/choice_text_chance"] == pytest.approx(1 / 4)
    assert {"eval/choice_image", "eval/choice_group", "eval/choice_even_text"} <= found.keys()
    assert found["eval/choice_group"] <= min(found["eval/choice_text"], found["eval/choice_image"])
    one_image = Asking(memory_source(12), [Question((0,), texts, ((0, 0),))])
    found = evaluate(one_image, model, variables, mesh, tokenizer, "choice").metrics
    assert "eval/choice_image" not in found and "eval/choice_group" not in found


def test_all_evaluators_run_where_the_data_have_what_they_need(
    memory_source, model, variables, mesh, tokenizer
):
    cue = Question((0, 1, 2, 3, 4), ("a red square",), ((0, 0), (3, 0)))
    names = ("zero_shot", "macro_f1", "worst_group", "multilabel", "association")
    found = evaluate(Asking(memory_source(12), [cue]), model, variables, mesh, tokenizer, *names)
    metrics = found.metrics
    seen = [metrics[f"eval/zero_shot_{group}_top1"] for group in ("seen", "held_out")]
    assert metrics["eval/zero_shot_worst_group_top1"] == pytest.approx(min(seen))
    assert metrics["eval/jaccard"] == metrics["eval/jaccard_5_6"]
    assert 0 <= metrics["eval/zero_shot_macro_f1"] <= 1
    assert "eval/multilabel_map" not in metrics
    several = Asking(memory_source(12), [], several_labels=True)
    found = evaluate(several, model, variables, mesh, tokenizer, *names)
    assert "eval/zero_shot_top1" not in found.metrics
    by_class = [each.accuracy for each in found.classes]
    assert found.metrics["eval/multilabel_map"] == pytest.approx(np.mean(by_class))
    assert len(by_class) == 3

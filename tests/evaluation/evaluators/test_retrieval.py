"""Recall with several captions an image."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from clip_jax.config import DataConfig, EvaluationConfig, LossConfig
from clip_jax.evaluation.annotations import read_annotations
from clip_jax.evaluation.evaluators.retrieval import distinct_images, retrieval
from clip_jax.evaluation.suite import Evaluators


def recall_by_sorting(score_QG, right_QG, k):
    first_QK = np.argsort(-score_QG, axis=1)[:, :k]
    return np.take_along_axis(right_QG, first_QK, axis=1).any(axis=1).mean()


def test_recall_equals_that_of_sorting_in_both_directions(mesh, unit):
    z_image_NE, z_text_ME = unit(0, 30, 8), unit(1, 100, 8)
    image_of_text_M = np.r_[np.arange(30), np.random.default_rng(0).integers(0, 30, 70)]
    metrics = retrieval(z_image_NE, z_text_ME, image_of_text_M, mesh=mesh)
    score_MN = z_text_ME @ z_image_NE.T
    right_MN = image_of_text_M[:, None] == np.arange(30)
    for k in (1, 5, 10):
        expected = recall_by_sorting(score_MN, right_MN, k)
        assert metrics[f"text_to_image_recall_at_{k}"] == pytest.approx(expected)
        expected = recall_by_sorting(score_MN.T, right_MN.T, k)
        assert metrics[f"image_to_text_recall_at_{k}"] == pytest.approx(expected)


def test_a_perfect_model_has_recall_one_and_rank_one(mesh, unit):
    z_NE = unit(0, 20, 64)
    metrics = retrieval(z_NE, z_NE.repeat(3, axis=0), np.arange(20).repeat(3), mesh=mesh)
    for direction in ("text_to_image", "image_to_text"):
        assert metrics[f"{direction}_recall_at_1"] == 1
        assert metrics[f"{direction}_mean_rank"] == metrics[f"{direction}_median_rank"] == 1


def test_chance_is_what_random_embeddings_reach(mesh, unit):
    image_of_text_M = np.r_[np.arange(12), np.arange(6), np.arange(3)]
    sums: dict[str, float] = {}
    for seed in range(120):
        measured = retrieval(
            unit(seed, 12, 16), unit(1000 + seed, 21, 16), image_of_text_M, mesh=mesh
        )
        sums = {name: sums.get(name, 0) + value / 120 for name, value in measured.items()}
    for direction in ("text_to_image", "image_to_text"):
        for k in (1, 5, 10):
            name = f"{direction}_recall_at_{k}"
            # Four standard errors of 120 x 12 coin throws.
            assert sums[name] == pytest.approx(
                sums[f"{name}_chance"], abs=4 * math.sqrt(0.25 / 1440)
            )


def test_an_image_without_a_caption_is_found_but_asks_nothing(mesh):
    z_image_NE = np.eye(3, dtype=np.float32)
    # The only caption looks most like image 2, which has none of its own.
    z_text_ME = np.array([[0.6, 0.0, 0.8]], np.float32)
    metrics = retrieval(z_image_NE, z_text_ME, np.array([0]), mesh=mesh)
    assert metrics["text_to_image_recall_at_1"] == 0
    assert metrics["text_to_image_mean_rank"] == 2
    assert metrics["image_to_text_recall_at_1"] == 1


def test_more_places_than_answers_are_a_certain_find(mesh, unit):
    metrics = retrieval(unit(0, 4, 8), unit(1, 4, 8), np.arange(4), mesh=mesh)
    assert metrics["text_to_image_recall_at_10"] == metrics["image_to_text_recall_at_10"] == 1
    assert metrics["text_to_image_recall_at_10_chance"] == 1
    assert metrics["image_to_text_recall_at_10_chance"] == 1


@pytest.mark.parametrize("group_rows", [True, False])
def test_equal_files_are_one_image_in_retrieval_wherever_they_lie(
    group_rows, mesh, model, variables, tokenizer, memory_source, caplog
):
    """As in shards that have the image of each pair again: five rows an image."""

    class Again(memory_source):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index % 4), captions=(f"text {index}",))

    read = {"cfg": EvaluationConfig(batch_size=8), "loss": LossConfig()}
    data = DataConfig(threads=1, group_rows=group_rows)
    evaluators = Evaluators(Again(20), {}, model, mesh, tokenizer, data=data, **read)
    found = evaluators(variables).metrics
    assert found["eval/samples"] == 20  # zero-shot and the loss have all of them
    images = 4 if group_rows else 20
    assert found["eval/text_to_image_recall_at_1_chance"] == 1 / images
    assert ("20 samples are 4 images" in caplog.text) == group_rows
    seen = []

    def perfect(data):
        rows, annotations, image_of_text_M = distinct_images(data)
        seen.append([annotation.captions for annotation in annotations])
        picture_N = np.array([data.annotations[row].index % 4 for row in rows])
        picture_M = np.array([int(text.split()[1]) % 4 for text in data.captions])
        z_NE, z_ME = np.eye(4, dtype=np.float32)[picture_N], np.eye(4, dtype=np.float32)[picture_M]
        return retrieval(z_NE, z_ME, image_of_text_M, mesh=mesh)

    annotations = read_annotations(Again(20), range(20))
    embedded = SimpleNamespace(
        annotations=annotations,
        data=data,
        source=Again(20),
        captions=[text for one in annotations for text in one.captions],
        image_of_text_M=np.arange(20),
    )
    recall = perfect(embedded)["text_to_image_recall_at_1"]
    assert recall == (1 if group_rows else pytest.approx(0.2))
    if group_rows:
        assert seen[0][1] == ("text 1", "text 5", "text 9", "text 13", "text 17")

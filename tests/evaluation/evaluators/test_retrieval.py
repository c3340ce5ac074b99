"""Recall with several captions an image."""

import math

import numpy as np
import pytest

from clip_jax.evaluation.evaluators.retrieval import retrieval


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

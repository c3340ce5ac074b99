"""Probes of frozen embeddings against slow references, on one device and eight."""

import jax
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    MeshConfig,
    TrainConfig,
)
from clip_jax.data.sources import registry
from clip_jax.evaluation.evaluators import few_shot, linear_probe
from clip_jax.evaluation.evaluators.knn import knn_votes
from clip_jax.evaluation.suite import Evaluators, best_direction, named_evaluators


@pytest.fixture(scope="module")
def blobs():
    """Four classes around directions of their own: 203 images for training, 50 for the test."""
    rng = np.random.default_rng(0)
    label_N = np.arange(253) % 4
    z_NE = rng.normal(size=(4, 6))[label_N] + rng.normal(size=(253, 6))
    z_NE = (z_NE / np.linalg.norm(z_NE, axis=1, keepdims=True)).astype(np.float32)
    return z_NE[:203], label_N[:203], z_NE[203:], label_N[203:]


def test_the_nearest_vote_with_the_exponential_of_their_cosine(blobs, mesh):
    z_NE, label_N, z_test_NE, _ = blobs
    votes_NS = knn_votes(z_test_NE, z_NE, label_N, mesh=mesh, neighbours=7, temperature=0.1)
    for z_E, votes_S in zip(z_test_NE, votes_NS):
        nearest = np.argsort(-(z_NE @ z_E))[:7]
        expected_S = np.zeros(4)
        for row in nearest:
            expected_S[label_N[row]] += np.exp(float(z_NE[row] @ z_E) / 0.1)
        np.testing.assert_allclose(
            votes_S / votes_S.sum(), expected_S / expected_S.sum(), rtol=1e-3
        )


@pytest.mark.parametrize("rows", [5, 203])  # fewer images than features, and more
def test_the_closed_form_minimises_the_penalised_squares(blobs, mesh, rows):
    z_NE, label_N, z_test_NE, _ = blobs
    z_NE, label_N = z_NE[:rows], label_N[:rows]
    head = few_shot.fit(z_NE, label_N, mesh=mesh, penalty=3.0)
    x_NE = (z_NE - z_NE.mean(axis=0)) / (z_NE.std(axis=0) + 1e-5)
    x_NE = np.concatenate([x_NE, np.full((rows, 1), 100.0)], axis=1)
    y_NS = 2.0 * np.eye(4)[label_N] - 1
    # The gradient of the penalised squares is zero at the minimum.
    gradient_ES = x_NE.T @ (x_NE @ head._weight_SE.T - y_NS) + 3.0 * head._weight_SE.T
    assert np.abs(gradient_ES).max() < 2e-3 * np.abs(x_NE.T @ y_NS).max()
    x_test_NE = (z_test_NE - z_NE.mean(axis=0)) / (z_NE.std(axis=0) + 1e-5)
    x_test_NE = np.concatenate([x_test_NE, np.full((50, 1), 100.0)], axis=1)
    expected_N = (x_test_NE @ head._weight_SE.T).argmax(axis=1)
    assert (head.predict(z_test_NE, mesh=mesh) == expected_N).mean() > 0.97  # but for near ties


def test_shots_are_so_many_of_each_class_and_others_with_another_seed(blobs):
    _, label_N, _, _ = blobs
    rows = few_shot.draw(label_N, 3, 0)
    assert np.bincount(label_N[rows]).tolist() == [3, 3, 3, 3]
    assert set(rows) == set(few_shot.draw(label_N, 3, 0)) != set(few_shot.draw(label_N, 3, 1))


def test_a_probe_is_trained_by_adamw_on_any_number_of_devices(blobs, mesh, monkeypatch):
    """Against the same steps written out, with two weight decays at once and a last batch that is not full."""
    monkeypatch.setattr(linear_probe, "EPOCHS", 2)
    z_NE, label_N, _, _ = blobs
    decays = (1e-6, 0.3)
    heads_KSE = linear_probe.fit(z_NE, label_N, decays, classes=4, mesh=mesh)
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    alone_KSE = linear_probe.fit(z_NE, label_N, decays, classes=4, mesh=one)
    np.testing.assert_allclose(heads_KSE, alone_KSE, atol=1e-5)
    for decay, head_SE in zip(decays, heads_KSE):
        rng = np.random.default_rng(0)
        expected_SE = rng.uniform(-1, 1, (4, 7)) / np.sqrt(6)
        first_SE, second_SE, step = np.zeros((4, 7)), np.zeros((4, 7)), 0
        x_NE = np.concatenate([z_NE, np.ones((203, 1))], axis=1)
        for _ in range(2):
            order = rng.permutation(203)
            for rows in np.split(order, [64, 128, 192]):
                p_BS = np.exp(x_NE[rows] @ expected_SE.T)
                p_BS = p_BS / p_BS.sum(axis=1, keepdims=True) - np.eye(4)[label_N[rows]]
                gradient_SE = p_BS.T @ x_NE[rows] / len(rows)
                first_SE = 0.9 * first_SE + 0.1 * gradient_SE
                second_SE = 0.999 * second_SE + 0.001 * gradient_SE**2
                rate, step = 0.05 * (1 + np.cos(np.pi * step / 8)), step + 1
                moved_SE = first_SE / (1 - 0.9**step)
                moved_SE /= np.sqrt(second_SE / (1 - 0.999**step)) + 1e-8
                expected_SE = expected_SE * (1 - rate * decay) - rate * moved_SE
        np.testing.assert_allclose(head_SE, expected_SE, atol=1e-4)


def test_the_search_narrows_around_the_best_weight_decay():
    tried = []

    def accuracies(places):
        tried.extend(places)
        return [-abs(place - 43) for place in places]

    assert linear_probe.search(accuracies) == 43
    assert len(tried) == len(set(tried)) <= 17  # of 97
    assert linear_probe.search(lambda places: [0.5] * len(places)) == 0  # of equals the weakest


def test_a_fifth_of_every_class_is_held_out():
    label_N = np.repeat([0, 1, 2], [20, 2, 1])
    held_N = linear_probe.held_out(label_N)
    assert [int(held_N[label_N == label].sum()) for label in range(3)] == [4, 1, 0]


def test_probes_are_evaluators_that_may_choose_the_best_checkpoint(
    memory_source, model, variables, mesh, tokenizer, monkeypatch
):
    monkeypatch.setattr(linear_probe, "EPOCHS", 3)
    monkeypatch.setattr(registry, "open_source", lambda spec, split, cfg: memory_source(45))
    cfg = EvaluationConfig(
        batch_size=8,
        metrics=("knn", "few_shot", "linear_probe"),
        probe_source="memory",
        probe_samples=42,
    )
    data = DataConfig(threads=1)
    measure = Evaluators(
        memory_source(12), {"also": memory_source(6)}, model, mesh, tokenizer,
        cfg=cfg, data=data, loss=LossConfig(),
    )  # fmt: skip
    found = measure(variables).metrics
    for name in ("knn_top1", "few_shot_1_top1", "few_shot_10_top1", "linear_probe_top1"):
        assert 0.3 < found[f"eval/{name}"] <= 1  # squares of three colors
        best_direction(TrainConfig(
            evaluation=cfg, checkpoint=CheckpointConfig(keep_best_by=f"eval/{name}")
        ))  # fmt: skip
    assert "eval/also/knn_top1" not in found  # which has no training set
    assert "eval/few_shot_25_top1" not in found  # 14 images a class
    assert measure.facts()["probe data"] == "00"


def test_a_probe_without_a_training_set_is_refused():
    with pytest.raises(
        ValueError, match=r"'knn' needs a training set: .* evaluation\.probe_source"
    ):
        named_evaluators(EvaluationConfig(metrics=("knn",)))

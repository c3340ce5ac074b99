"""The figures of a batch, against the whole similarity matrix."""

import jax
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.training import metrics
from clip_jax.training.metrics import in_batch_metrics


def embeddings(batch: int = 48) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image_BE = rng.normal(size=(batch, 8))
    text_BE = image_BE + 1.5 * rng.normal(size=(batch, 8))
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image_BE, text_BE))
    return tuple(z.astype(np.float32) for z in unit)


def measured(z_image_BE, z_text_BE, on) -> dict[str, float]:
    z = jax.device_put((z_image_BE, z_text_BE), sharding.batch_sharding(on))
    return jax.device_get(jax.jit(lambda *z: in_batch_metrics(*z, on))(*z))


@pytest.mark.parametrize("block", [2**24, 96], ids=["at once", "by rows"])
@pytest.mark.parametrize("shape", [(1, 1), (4, 2)], ids=str)
def test_accuracies_and_mean_cosines_are_those_of_the_whole_matrix(mesh, shape, block, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", block)
    z_image_BE, z_text_BE = embeddings()
    cosines_BB = z_image_BE @ z_text_BE.T
    own_B, B = np.arange(48), 48
    match = np.trace(cosines_BB)
    expected = {
        "accuracy_image_to_text": (cosines_BB.argmax(axis=1) == own_B).mean(),
        "accuracy_text_to_image": (cosines_BB.argmax(axis=0) == own_B).mean(),
        "cosine_pairs": match / B,
        "cosine_others": (cosines_BB.sum() - match) / (B * (B - 1)),
    }
    assert 0 < expected["accuracy_image_to_text"] < 1
    found = measured(z_image_BE, z_text_BE, mesh(*shape))
    assert found == pytest.approx(expected, abs=1e-5)


def test_equal_captions_are_no_error(mesh):
    z_image_BE, z_text_BE = embeddings(8)
    z_text_BE[:] = z_text_BE[0]
    z_image_BE[:] = z_image_BE[0]
    found = measured(z_image_BE, z_text_BE, mesh(1))
    assert found["accuracy_image_to_text"] == found["accuracy_text_to_image"] == 1


def test_a_single_pair_has_no_others(mesh):
    z_BE = embeddings(1)
    assert measured(*z_BE, mesh(1))["cosine_others"] == pytest.approx(0, abs=1e-6)

"""The mean cosines of a batch, against the whole similarity matrix."""

import jax
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.training.metrics import mean_cosines


def embeddings(batch: int = 48) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image_BE = rng.normal(size=(batch, 8))
    text_BE = image_BE + 1.5 * rng.normal(size=(batch, 8))
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image_BE, text_BE))
    return tuple(z.astype(np.float32) for z in unit)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)], ids=str)
def test_mean_cosines_are_those_of_the_whole_matrix(mesh, shape):
    z_image_BE, z_text_BE = embeddings()
    cosines_BB = z_image_BE @ z_text_BE.T
    match, B = np.trace(cosines_BB), 48
    expected = {
        "cosine_pairs": match / B,
        "cosine_others": (cosines_BB.sum() - match) / (B * (B - 1)),
    }
    z = jax.device_put((z_image_BE, z_text_BE), sharding.batch_sharding(mesh(*shape)))
    assert jax.device_get(jax.jit(mean_cosines)(*z)) == pytest.approx(expected, abs=1e-5)


def test_a_single_pair_has_no_others():
    assert mean_cosines(*embeddings(1))["cosine_others"] == pytest.approx(0, abs=1e-6)

"""Exact search gives what a sort of all scores gives, on any number of devices, in chunks or not."""

import jax
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.collection.embeddings import open_embeddings
from clip_jax.config import MeshConfig
from clip_jax.search import exact
from clip_jax.search.exact import ExactSearch, search_rows


def by_sorting(x_NE, z_QE, k):
    """Scores and rows, the best first; of equal scores the lower row."""
    score_QN = z_QE @ x_NE.T
    row_QK = np.argsort(-score_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score_QN, row_QK, 1), row_QK


@pytest.fixture(scope="module")
def vectors(embeddings):
    return open_embeddings(embeddings).vectors["image"]


@pytest.mark.parametrize("block", [32, 2048], ids=["in-blocks", "whole"])
@pytest.mark.parametrize(
    "devices, resident, chunk", [(8, True, 64), (1, False, 300), (8, False, 999)]
)
def test_the_nearest_rows_are_those_of_a_sort(
    devices, resident, chunk, block, vectors, vectors_of, monkeypatch
):
    monkeypatch.setattr(exact, "BLOCK", block)
    exact._merge.cache_clear()
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    search = ExactSearch(vectors, mesh, resident=resident, chunk=chunk)
    z_QE = vectors_of(1, 5, 32)
    found = search.search(z_QE, 7)
    score_QK, row_QK = by_sorting(vectors.take(np.arange(1200)), z_QE, 7)
    np.testing.assert_array_equal(found.row_QK, row_QK)
    np.testing.assert_allclose(found.score_QK, score_QK, rtol=1e-5)


def test_equal_rows_come_in_the_order_of_their_numbers(
    all_devices, write_embeddings, vectors_of, tmp_path
):
    x_NE = np.tile(vectors_of(0, 4, 8), (10, 1))
    vectors = open_embeddings(write_embeddings(tmp_path / "e", x_NE)).vectors["image"]
    search = ExactSearch(vectors, all_devices, resident=True, chunk=2)
    z_QE = vectors.take(np.array([2]))
    assert search.search(z_QE, 12).row_QK[0, :10].tolist() == list(range(2, 40, 4))
    assert search_rows(vectors, np.arange(40), z_QE, 12).row_QK[0, :10].tolist() == list(
        range(2, 40, 4)
    )


def test_more_results_than_rows_are_marked(all_devices, write_embeddings, vectors_of, tmp_path):
    vectors = open_embeddings(write_embeddings(tmp_path / "e", vectors_of(0, 5, 8))).vectors[
        "image"
    ]
    search = ExactSearch(vectors, all_devices, resident=True)
    for found in (
        search.search(vectors.take(np.array([3])), 9),
        search_rows(vectors, np.arange(5), vectors.take(np.array([3])), 9),
    ):
        assert found.row_QK[0, 0] == 3
        assert sorted(found.row_QK[0, :5]) == [0, 1, 2, 3, 4]
        assert found.row_QK[0, 5:].tolist() == [-1] * 4
        assert np.isneginf(found.score_QK[0, 5:]).all()


def test_rows_that_are_not_numbers_are_never_found(
    all_devices, write_embeddings, vectors_of, tmp_path
):
    x_NE = vectors_of(0, 50, 8)
    x_NE[7] = np.nan
    vectors = open_embeddings(write_embeddings(tmp_path / "e", x_NE)).vectors["image"]
    found = ExactSearch(vectors, all_devices, resident=True).search(vectors.take(np.array([0])), 50)
    assert sorted(found.row_QK[0].tolist()) == [-1, *(row for row in range(50) if row != 7)]


@pytest.mark.parametrize("count", [1, 3, 40, 700])
def test_some_rows_alone_are_searched_as_exactly(count, vectors, vectors_of):
    rows_N = np.sort(np.random.default_rng(count).choice(1200, count, replace=False))
    z_QE = vectors_of(2, 3, 32)
    found = search_rows(vectors, rows_N, z_QE, 5)
    score_QK, at_QK = by_sorting(vectors.take(rows_N), z_QE, 5)
    known = min(count, 5)
    np.testing.assert_array_equal(found.row_QK[:, :known], rows_N[at_QK])
    np.testing.assert_allclose(found.score_QK[:, :known], score_QK, rtol=1e-5)


def test_what_devices_hold_does_not_grow_with_the_results_asked_for(
    all_devices, write_embeddings, vectors_of, tmp_path, monkeypatch
):
    vectors = open_embeddings(write_embeddings(tmp_path / "e", vectors_of(0, 5, 8))).vectors[
        "image"
    ]
    search = ExactSearch(vectors, all_devices, resident=True)
    asked, whole = [], search._search
    monkeypatch.setattr(search, "_search", lambda z_QE, k: asked.append(k) or whole(z_QE, k))
    found = search.search(vectors.take(np.array([3])), 100_000)
    assert asked == [5] and found.row_QK.shape == found.score_QK.shape == (1, 100_000)
    assert (found.row_QK[0, 5:] == -1).all() and np.isneginf(found.score_QK[0, 5:]).all()

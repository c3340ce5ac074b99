"""Ranks against sorting, ties against all orders of what is equal."""

import itertools

import jax
import numpy as np
import pytest

from clip_jax.evaluation import ranking
from clip_jax.evaluation.encode import Stopped
from clip_jax.evaluation.ranking import Ranks, rank


def ranks_by_sorting(z_query_QE, owner_Q, z_gallery_GE, owner_G):
    """1 for a query whose best answer is right, without ties."""
    order_QG = np.argsort(-z_query_QE.astype(float) @ z_gallery_GE.T.astype(float), axis=1)
    return (owner_G[order_QG] == owner_Q[:, None]).argmax(axis=1) + 1


@pytest.mark.parametrize("rows", [1, 3, 512])
def test_ranks_equal_those_of_sorting_for_any_size_of_chunk(mesh, unit, rows):
    z_query_QE, z_gallery_GE = unit(0, 37, 8), unit(1, 90, 8)
    owner_G = np.random.default_rng(2).integers(0, 20, 90)
    owner_Q = np.random.default_rng(3).choice(owner_G, 37)
    ranks = rank(z_query_QE, owner_Q, z_gallery_GE, owner_G, mesh=mesh, rows=rows)
    expected = ranks_by_sorting(z_query_QE, owner_Q, z_gallery_GE, owner_G)
    np.testing.assert_array_equal(ranks.expected(), expected)
    for k in (1, 5, 10):
        np.testing.assert_allclose(ranks.found(k), expected <= k)


@pytest.mark.parametrize(
    ("better", "tied", "right"), list(itertools.product((0, 1, 3), (0, 2), (1, 2)))
)
def test_a_tie_counts_as_the_average_over_all_orders(better, tied, right):
    ranks = Ranks(np.array([better]), np.array([tied]), np.array([right]))
    orders = list(itertools.permutations([False] * tied + [True] * right))
    places = np.array([better + 1 + order.index(True) for order in orders])
    assert ranks.expected()[0] == pytest.approx(places.mean())
    for k in range(1, 8):
        assert ranks.found(k)[0] == pytest.approx((places <= k).mean())


def test_a_model_that_gives_all_the_same_score_finds_as_much_as_guessing(mesh):
    same_NE = np.ones((40, 4), np.float32)
    ranks = rank(same_NE, np.arange(40), same_NE, np.arange(40), mesh=mesh)
    assert ranks.found(1).mean() == pytest.approx(1 / 40)
    assert ranks.found(10).mean() == pytest.approx(10 / 40)


def test_a_model_that_gives_no_numbers_finds_nothing(mesh):
    nothing_NE = np.full((12, 4), np.nan, np.float32)
    ranks = rank(nothing_NE, np.arange(12), nothing_NE, np.arange(12), mesh=mesh)
    assert ranks.found(1).max() == 0
    assert ranks.expected().min() == 12


def test_scores_that_differ_in_the_seventh_digit_are_not_tied(mesh):
    z_gallery_GE = np.array([[1.0, 0.0], [1.0 - 2e-7, 0.0]], np.float32)
    ranks = rank(z_gallery_GE[:1], np.array([0]), z_gallery_GE, np.arange(2), mesh=mesh)
    assert (ranks.better_B[0], ranks.tied_B[0]) == (0, 0)


def test_memory_grows_with_chunk_times_gallery_not_with_queries_times_gallery(mesh):
    def bytes_held(queries):
        shapes = ((queries, 8), np.float32), ((queries,), np.int32)
        shapes += ((1000, 8), np.float32), ((1000,), np.int32)
        args = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
        return jax.jit(ranking.count).lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert bytes_held(4 * ranking.ROWS) > 2 * bytes_held(ranking.ROWS)
    assert bytes_held(ranking.ROWS) < 8 * ranking.ROWS * 1000 * 4


def test_a_program_is_traced_once_for_all_chunks(monkeypatch, mesh, unit):
    z_NE, traced, count = unit(0, 53, 4), [], ranking.count
    monkeypatch.setattr(ranking, "count", lambda *args: traced.append(1) or count(*args))
    ranking._count.cache_clear()
    for _ in range(2):
        rank(z_NE, np.arange(53), z_NE, np.arange(53), mesh=mesh, rows=4)
    assert len(traced) == 1
    ranking._count.cache_clear()


def test_ranking_stops_between_chunks_when_asked(mesh, unit):
    z_NE, answers = unit(0, 8 * mesh.size, 4), iter([False, False, True])
    with pytest.raises(Stopped):
        owners = np.arange(len(z_NE))
        rank(z_NE, owners, z_NE, owners, mesh=mesh, rows=2, should_stop=lambda: next(answers))

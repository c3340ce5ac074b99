"""Near duplicates are those of a comparison of all pairs in float64, on any number of devices."""

import numpy as np
import pytest

from clip_jax.curation import clusters
from clip_jax.curation.duplicates import find_duplicates
from clip_jax.curation.filter import by_evaluation
from clip_jax.curation.vectors import ArrayRows, cosines, unit

ABOVE = 0.9


def greedy(z_NE: np.ndarray, order_N, above: float, clusters_NC=None) -> dict[int, int]:
    """The rule by its definition: dropped row -> the nearest kept row before it."""
    z_NE = unit(ArrayRows(z_NE), np.arange(len(z_NE))).astype(np.float64)
    kept, partners = [], {}
    for row in order_N:
        others = [
            k for k in kept if clusters_NC is None or set(clusters_NC[k]) & set(clusters_NC[row])
        ]
        cosine_K = z_NE[others] @ z_NE[row] if others else np.zeros(0)
        if len(cosine_K) and cosine_K.max() >= above:
            partners[row] = others[int(cosine_K.argmax())]
        else:
            kept.append(row)
    return partners


@pytest.fixture
def planted(vectors, near):
    """300 vectors of which a third are near to others, some in chains and some many times there."""
    rng = np.random.default_rng(1)
    z_NE = vectors(180)
    chain = [z_NE[:20]]
    for _ in range(3):
        chain.append(near(chain[-1], 0.93, rng))  # the third is far from the first
    copies = np.repeat(z_NE[30:31], 30, axis=0)
    close = near(z_NE[40:70], np.linspace(0.8, 0.99, 30), rng)
    return rng.permutation(np.concatenate([z_NE, *chain[1:], copies, close])).astype(np.float32)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("block", [16, 512])
def test_the_rule_is_that_of_all_pairs(planted, mesh, devices, block):
    order_N = np.random.default_rng(2).permutation(len(planted))[:280]
    found = find_duplicates(ArrayRows(planted), order_N, ABOVE, mesh(devices), block=block, tile=16)
    partners = greedy(planted, order_N.tolist(), ABOVE)
    assert len(partners) > 60
    assert {row: found.partner_N[row] for row in np.flatnonzero(found.partner_N >= 0)} == partners
    dropped = list(partners)
    cosine = (planted[dropped].astype(float) * planted[list(partners.values())]).sum(axis=1)
    np.testing.assert_allclose(found.cosine_N[dropped], cosine, atol=1e-6)


@pytest.mark.parametrize("block", [1, 8])
def test_a_cosine_at_the_threshold_is_near(vectors, near, mesh, block):
    z_NE = vectors(4, 64)
    rows = ArrayRows(np.concatenate([z_NE, near(z_NE, 0.9, np.random.default_rng(4))]))
    z = unit(rows, np.arange(8))
    # The lowest cosine of a pair, exactly; float32 may say less, or more.
    at = [float(cosines(z[n : n + 1], z[n + 4 : n + 5])[0]) for n in range(4)]
    for above, pairs in ((min(at), 4), (np.nextafter(min(at), 1), 3)):
        found = find_duplicates(rows, np.arange(8), above, mesh(1), block=block)
        assert (found.partner_N >= 0).sum() == pairs
        sets = {"a": ArrayRows(z[:4])}
        dropped_N = by_evaluation(rows, np.arange(4, 8), sets, above, mesh(1)).dropped_N
        assert len(dropped_N) == pairs


def test_two_that_differ_by_less_than_float32_are_told_apart(vectors, near, mesh):
    rng, above = np.random.default_rng(3), 0.9
    z_NE = vectors(200, 512)
    # Within the margin that the devices leave to float64, on both sides of the threshold.
    cosine_N = above + rng.uniform(-2e-6, 2e-6, len(z_NE))
    both = np.concatenate([z_NE, near(z_NE, cosine_N, rng)]).astype(np.float32)
    z = unit(ArrayRows(both), np.arange(len(both))).astype(np.float64)
    expected_N = (z[:200] * z[200:]).sum(axis=1) >= above
    found = find_duplicates(ArrayRows(both), np.arange(400), above, mesh(2), block=100, tile=64)
    np.testing.assert_array_equal(found.partner_N[200:] >= 0, expected_N)
    assert 50 < expected_N.sum() < 150


def test_the_nearest_below_the_threshold_is_known_for_the_report(planted, mesh):
    found = find_duplicates(
        ArrayRows(planted), np.arange(len(planted)), ABOVE, mesh(2), block=64, tile=16
    )
    kept_N = np.flatnonzero(found.partner_N < 0)
    cosine_NN = np.tril(planted[kept_N] @ planted[kept_N].T, -1)
    cosine_NN[np.triu_indices(len(kept_N))] = -2
    assert cosine_NN.max() < ABOVE
    np.testing.assert_allclose(found.below_N[kept_N], cosine_NN.max(axis=1), atol=1e-5)
    rows = kept_N[1:]
    np.testing.assert_allclose(
        (planted[rows] * planted[found.below_partner_N[rows]]).sum(axis=1),
        found.below_N[rows],
        atol=1e-5,
    )


def test_clusters_limit_what_is_compared(planted, mesh):
    clusters_NC = np.random.default_rng(4).integers(0, 5, (len(planted), 2))
    order_N = np.arange(len(planted))
    found = find_duplicates(
        ArrayRows(planted), order_N, ABOVE, mesh(2), clusters_NC=clusters_NC, block=64, tile=16
    )
    partners = greedy(planted, order_N.tolist(), ABOVE, clusters_NC)
    assert {row: found.partner_N[row] for row in np.flatnonzero(found.partner_N >= 0)} == partners
    assert len(partners) < len(greedy(planted, order_N.tolist(), ABOVE))


@pytest.mark.parametrize("devices", [1, 4])
def test_evaluation_sets_are_compared_whole(vectors, near, mesh, devices):
    rng = np.random.default_rng(5)
    z_NE, sets = vectors(130), {"a": vectors(70, seed=6), "b": vectors(2100, seed=7)}
    z_NE[:10] = near(sets["a"][:10], 0.95, rng)
    z_NE[10:20] = near(sets["b"][2090:], np.linspace(0.85, 0.949, 10), rng)
    left_N = np.arange(2, 130)
    rows = {name: ArrayRows(each) for name, each in sets.items()}
    found = by_evaluation(ArrayRows(z_NE), left_N, rows, ABOVE, mesh(devices))
    whole = np.concatenate(list(sets.values()))
    cosine_NM = z_NE[left_N] @ whole.T
    np.testing.assert_array_equal(found.dropped_N, left_N[cosine_NM.max(axis=1) >= ABOVE])
    np.testing.assert_allclose(found.value_N[left_N], cosine_NM.max(axis=1), atol=1e-6)
    best_N = found.partner_N[left_N] + np.where(found.set_N[left_N] == 1, 70, 0)
    np.testing.assert_array_equal(best_N, cosine_NM.argmax(axis=1))
    assert np.isnan(found.value_N[:2]).all()


def test_a_vector_of_zeros_is_refused(planted, mesh):
    planted[7] = 0
    with pytest.raises(ValueError, match="1 rows are zero or not finite, such as row 7"):
        find_duplicates(ArrayRows(planted), np.arange(20), ABOVE, mesh(1))


def test_recall_is_that_of_the_clusters(vectors, near):
    rng = np.random.default_rng(8)
    z_NE = vectors(400, 16)
    z_NE[200:] = near(z_NE[:200], rng.uniform(0.9, 0.999, 200), rng)
    rows = ArrayRows(z_NE)
    clusters_NP = clusters.assign(rows, 20, 2, seed=0)
    assert all(len(set(mine)) == 2 for mine in clusters_NP.tolist())
    near_NN = np.triu(rows.take(np.arange(400)) @ rows.take(np.arange(400)).T >= 0.92, 1)
    pairs = np.argwhere(near_NN)
    shared = [bool(set(clusters_NP[a]) & set(clusters_NP[b])) for a, b in pairs]
    measured = clusters.recall(rows, clusters_NP, 0.92, seed=0)
    assert measured == (2 * len(pairs), 2 * sum(shared))  # from both sides, as all rows are sampled
    assert 0.5 < sum(shared) / len(pairs) < 1
    whole = clusters.recall(rows, np.zeros((400, 1), int), 0.92, seed=0)
    assert whole.found == whole.pairs

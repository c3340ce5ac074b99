"""The order is a bijection, looks random, and needs no state."""

import numpy as np
import pytest

from clip_jax.data.shuffle import Mixture, hash64, permute


@pytest.mark.parametrize("n", [1, 2, 3, 10, 997, 1024, 1025, 4099])
def test_an_epoch_holds_every_sample_once(n):
    order = permute(np.arange(n), n, hash64(0, 3))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("n", [1_000, 65_536, 1_000_003, 400_000_000, 6_000_000_000])
@pytest.mark.parametrize("lag", [1, 2, 16])
def test_the_places_of_neighbours_are_uncorrelated(n, lag):
    count = min(n, 20_000)
    order = permute(np.arange(count), n, hash64(5, 0)).astype(float)
    correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
    assert abs(correlation) * np.sqrt(count) < 4  # standard deviations


def test_every_order_of_four_is_about_as_frequent():
    keys = hash64(np.arange(4800), 1)
    places = [permute(np.full(4800, index), 4, keys) for index in range(4)]
    _, counts = np.unique(np.stack(places, 1), axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 56  # chi-squared of 23 degrees at 1 in 10,000


def test_a_place_is_found_without_its_neighbours():
    everything = permute(np.arange(1000), 1000, hash64(1, 2))
    assert permute(np.array([777]), 1000, hash64(1, 2))[0] == everything[777]


def test_epochs_and_seeds_are_shuffled_differently():
    mixture = Mixture([500])
    first, second = (mixture.rows(np.arange(500) + 500 * epoch, 0)[1] for epoch in (0, 1))
    other_seed = mixture.rows(np.arange(500) + 500, 1)[1]
    assert (first == second).mean() < 0.05
    # A seed that was only added to the epoch would make this the second epoch of seed 0.
    assert (first == other_seed).mean() < 0.05 and (second == other_seed).mean() < 0.05


def test_sources_without_weights_are_one_long_source():
    source, index, epoch = Mixture([5, 1, 14]).rows(np.arange(40), 0)
    assert epoch.tolist() == [0] * 20 + [1] * 20
    for half in (slice(0, 20), slice(20, 40)):
        seen = sorted(zip(source[half].tolist(), index[half].tolist()))
        assert seen == [(s, i) for s, n in enumerate([5, 1, 14]) for i in range(n)]


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1, 2, 7), (np.pi, 1, 0.01)])
def test_every_window_of_a_mixture_has_its_proportions(weights):
    source, _, _ = Mixture([10, 1000, 50], weights).rows(np.arange(3000), 0)
    share = np.array(weights) / np.sum(weights)
    for start in range(0, 2500, 77):
        for size in (64, 500):
            counts = np.bincount(source[start : start + size], minlength=3)
            assert (abs(counts - share * size) <= 2).all()


@pytest.mark.parametrize("rare", [3e-8, 1e-6, 8e-6, 1.2e-5])
def test_a_source_of_a_tiny_share_keeps_it(rare):
    """Between its samples lie 1 / share places, and its own order has no gap."""
    mixture = Mixture([1000, 77, 50], [0.7 - rare, 0.3, rare])
    wanted = 5
    found = []
    for number in range(wanted):  # near the places where it is due, which are far apart
        due = round((number + 0.5) / rare)
        source_B, index_B, _ = mixture.rows(np.arange(due - 50, due + 50), 3)
        (here,) = np.flatnonzero(source_B == 2)
        assert abs(here - 50) <= 1
        found.append(int(index_B[here]))
    assert len(set(found)) == wanted
    others_B = source_B[source_B != 2]
    assert np.mean(others_B == 0) == pytest.approx(0.7, abs=0.02)


def test_each_source_of_a_mixture_goes_through_its_own_epochs():
    source, index, epoch = Mixture([10, 1000], (3, 1)).rows(np.arange(400), 0)
    small = index[source == 0]
    for number in range(30):
        assert sorted(small[number * 10 : number * 10 + 10]) == list(range(10))
    assert epoch[source == 0].tolist() == [place // 10 for place in range(300)]
    assert len(set(index[source == 1].tolist())) == 100 and not epoch[source == 1].any()


def test_sources_of_a_mixture_are_shuffled_each_in_its_own_order():
    source, index, _ = Mixture([500, 500], (1, 1)).rows(np.arange(1000), 0)
    assert (index[source == 0] == index[source == 1]).mean() < 0.05


def test_a_mixture_is_the_same_read_in_any_piece():
    mixture = Mixture([10, 1000, 50], (0.5, 0.3, 0.2))
    whole = np.stack(mixture.rows(np.arange(5000), 7))
    some = np.stack(mixture.rows(np.array([4321, 17, 2999]), 7))
    np.testing.assert_array_equal(whole[:, [4321, 17, 2999]], some)


def test_each_number_of_places_has_its_own_order_in_one_call():
    n_B = np.repeat([1, 7, 1000, 10**12], [1, 7, 1000, 4])
    index_B = np.concatenate([np.arange(n) for n in (1, 7, 1000, 4)])
    together = permute(index_B, n_B, hash64(n_B, 9))
    for n in (1, 7, 1000, 10**12):
        alone = permute(index_B[n_B == n], n, hash64(n, 9))
        np.testing.assert_array_equal(together[n_B == n], alone)

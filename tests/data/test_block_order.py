"""An order in blocks is a bijection, the same however it is shared out, and reads little at a time."""

import hashlib
import itertools

import numpy as np
import pytest

from clip_jax.data import block_order
from clip_jax.data.block_order import BlockOrder, Blocks, block_bytes
from clip_jax.data.shuffle import MAX_CYCLE

WEIGHTED = {"even": (0.5, 0.2, 0.3), "odd": (np.e, 0.2, 0.3)}  # whose counts are no power of two


def blocks(count, seed=0):
    sizes = np.random.default_rng(seed).integers(1, 40, count) if count else [1]
    return Blocks(np.concatenate([[0], np.cumsum(sizes)]), 1e6)


def make(*counts, weights=None, batch_size=32, window=24e6, seed=3):
    sources = [blocks(count, seed=place) for place, count in enumerate(counts)]
    return BlockOrder(sources, weights, batch_size=batch_size, window=window, seed=seed)


def rows(order, first, last):
    """The rows of some batches."""
    return order.rows(np.arange(first * order.batch_size, last * order.batch_size))


@pytest.mark.parametrize("counts", [(300,), (3,), (1,), (100, 40)])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_an_epoch_holds_every_sample_once(counts, batch_size):
    order = make(*counts, batch_size=batch_size)
    total = sum(order.lengths)
    found = rows(order, 0, -(-3 * total // batch_size) + batch_size)
    for epoch in (0, 1, 2):
        mine = found.epoch == epoch
        seen = sorted(zip(found.source[mine].tolist(), found.index[mine].tolist()))
        assert seen == [(s, i) for s, n in enumerate(order.lengths) for i in range(n)]


@pytest.mark.parametrize("weights", WEIGHTED.values(), ids=WEIGHTED)
def test_a_mixture_keeps_its_proportions_and_its_sources_their_epochs(weights):
    order = make(100, 7, 50, weights=weights, batch_size=64)
    found = rows(order, 0, 150)
    assert order._period <= MAX_CYCLE  # of which all places are kept, also of odd shares
    share = np.array(weights) / np.sum(weights)
    for step in range(150):
        counts = np.bincount(found.source[step * 64 : step * 64 + 64], minlength=3)
        assert (abs(counts - share * 64) <= 2).all()
    for epoch in (0, 1):
        small = found.index[(found.source == 1) & (found.epoch == epoch)]
        assert sorted(small.tolist()) == list(range(order.lengths[1]))


def test_sources_and_epochs_and_seeds_have_orders_of_their_own():
    """Sources of the same blocks too: else the same numbers would meet in each batch."""

    def first_rows(source, epoch, seed=3):
        same = blocks(60)
        order = BlockOrder([same, same], (0.5, 0.5), batch_size=32, window=24e6, seed=seed)
        found = rows(order, 0, 200)
        return found.index[(found.source == source) & (found.epoch == epoch)][:100]

    wanted = first_rows(0, 0)
    np.testing.assert_array_equal(first_rows(0, 0), wanted)
    for others in (first_rows(1, 0), first_rows(0, 1), first_rows(0, 0, seed=4)):
        assert (others == wanted).mean() < 0.2


def test_windows_have_orders_of_their_own():
    even = Blocks(np.arange(0, 6401, 10), 1e6)
    order = BlockOrder([even], None, batch_size=1, window=24e6, seed=3)
    found = rows(order, 0, 6400)
    sizes = np.bincount(found.window)
    same = np.flatnonzero(sizes == np.bincount(sizes[sizes > 0]).argmax())
    assert len(same) > 3
    # Where in their blocks the samples lie, in the order in which they come.
    first, *others = (found.index[found.window == window] % 10 for window in same)
    assert all((other == first).mean() < 0.5 for other in others)


def digest(order, shares, steps):
    """Of what stands in all rows of some steps, each host's found by itself."""
    found = []
    for own in shares:
        places = (np.arange(steps)[:, None] * order.batch_size + np.array(own)).ravel()
        found.append(np.stack(order.rows(places)[:3]).reshape(3, steps, len(own)))
    return hashlib.sha256(np.concatenate(found, axis=2).tobytes()).hexdigest()


@pytest.mark.parametrize("weights", [None, (0.5, 0.2, 0.3)])
def test_1000_steps_are_the_same_over_any_hosts_and_from_any_start(weights):
    expected = digest(make(90, 40, 60, weights=weights), [range(32)], 1000)
    for hosts in (2, 4, 8):
        shares = np.split(np.arange(32), hosts)
        assert digest(make(90, 40, 60, weights=weights), shares, 1000) == expected
    late = make(90, 40, 60, weights=weights)
    for step in (999, 500, 1):  # in any order: nothing is remembered that changes it
        np.testing.assert_array_equal(
            np.stack(rows(late, step, step + 1)),
            np.stack(make(90, 40, 60, weights=weights).rows(step * 32 + np.arange(32))),
        )


MIXTURES = [
    ((60, 7, 20), None),
    ((7,), None),  # in four lanes, which the rows of hosts need not be
    ((60, 7, 20), (0.5, 0.2, 0.3)),
    ((60, 7), (0.5, 0.5)),  # each in every second lane
    ((60, 0), (0.5, 0.5)),  # a source of one sample, which comes round sixteen times a batch
]


@pytest.mark.parametrize(("counts", "weights"), MIXTURES)
@pytest.mark.parametrize("share", [range(32), range(16, 24), range(5, 6), range(12, 20)])
def test_windows_say_ahead_what_a_host_reads_and_when(counts, weights, share):
    order = make(*counts, weights=weights)
    first, last, known = 5, 60, {}
    ahead = itertools.takewhile(lambda w: w.first_step < last, order.windows(share, first))
    starts = []
    for window in ahead:
        assert window[2:5] not in known
        known[window[2:5]] = window
        starts.append(window.first_step)
    assert starts == sorted(starts)
    used = set()
    for step in range(first, last):
        found = order.rows(step * 32 + np.array(share))
        for source, index, epoch, stream, number in zip(*(column.tolist() for column in found)):
            window = known[stream, epoch, number]
            used.add((stream, epoch, number))
            assert window.first_step <= step <= window.last_step
            assert any(p.source == source and p.start <= index < p.end for p in window.pieces)
    if len(share) > 1:
        assert used == known.keys()  # nothing is read in vain


def test_a_small_source_costs_no_more_than_the_samples_that_are_read(monkeypatch):
    """Of a lane's own epochs alone the order is worked out, not of all that come round meanwhile."""
    made, epoch = [], block_order._Epoch

    def note(*args):
        made.append(args)
        return epoch(*args)

    monkeypatch.setattr(block_order, "_Epoch", note)
    order = make(600, 0, weights=(0.5, 0.5), batch_size=256, window=256e6)
    assert order.lanes == 64
    ahead = itertools.takewhile(lambda w: w.first_step < 2, order.windows(range(256), 0))
    assert sum(window.stream == 1 for window in ahead) == 256
    assert len(made) < 256 + 64 + 10


def test_all_hosts_together_read_each_sample_about_once_an_epoch():
    order = make(600, batch_size=64)
    total, hosts = sum(order.lengths), 8
    read = 0
    for host in range(hosts):
        share = range(host * 8, host * 8 + 8)
        ahead = itertools.takewhile(lambda w: w.first_step <= total // 64, order.windows(share, 0))
        pieces = (piece for window in ahead if window.epoch == 0 for piece in window.pieces)
        read += sum(piece.end - piece.start for piece in pieces)
    assert read == total


def test_what_is_needed_at_once_is_a_window():
    order = make(600, batch_size=64, window=48e6)
    assert order.lanes * order.lane_blocks == 32
    assert make(7).lanes == 4  # as more would read each block several times
    for step in range(0, 100, 7):
        found = rows(order, step, step + 1)
        windows = set(zip(found.stream, found.epoch, found.window))
        assert len(windows) <= 2 * order.lanes  # of each lane one, or two where one ends


def test_lanes_begin_their_windows_at_different_steps():
    """So that no step waits for blocks of all of them."""
    even = Blocks(np.arange(0, 25_601, 10), 1e6)
    order = BlockOrder([even], None, batch_size=64, window=256e6, seed=3)
    assert (order.lanes, order.lane_blocks) == (64, 4)
    ahead = itertools.takewhile(lambda w: w.first_step < 200, order.windows(range(64), 0))
    begun = np.bincount([window.first_step for window in ahead])
    assert begun[0] == 64 and 0 < begun[1:].max() <= 64 // 4


def test_a_stand_in_comes_from_the_window():
    order = make(60, 7, 20)
    window = next(order.windows(range(32), 40))
    for draw in range(50):
        source, index = order.another(window.stream, window.epoch, window.number, draw)
        assert any(p.source == source and p.start <= index < p.end for p in window.pieces)


def test_batches_mix_many_blocks_and_epochs_differ():
    order = make(600, batch_size=64, window=64e6)
    first_K = blocks(600).first_K
    found = rows(order, 0, 40)
    block = np.searchsorted(first_K, found.index, side="right")
    for step in range(40):
        assert np.bincount(block[step * 64 : step * 64 + 64]).max() <= 6
    steps = sum(order.lengths) // 64
    again = rows(order, steps + 1, steps + 41)
    assert np.mean(found.index == again.index) < 0.05
    assert np.mean(found.index == rows(make(600, batch_size=64, seed=4), 0, 40).index) < 0.05


def test_a_block_has_about_200_samples_between_4_and_16_mb():
    assert block_bytes(400_000_000 * 50_000, 400_000_000) == 10_000_000
    assert block_bytes(10**12, 10**9) == 4_000_000
    assert block_bytes(10**12, 10**5) == 16_000_000

"""An order that reads whole blocks: which sample stands where, from (seed, position) alone.

A block is a run of neighbouring samples of one file. In each epoch the blocks are put into a
pseudo-random order, which is shared out among lanes. A lane is a fixed set of rows of every batch,
so that hosts, which take neighbouring rows, read different blocks. Within a lane the samples of
a few neighbouring blocks, a window, are put into a pseudo-random order.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from clip_jax.data.shuffle import MAX_CYCLE, hash64, pattern, permute, rare_shares, whole_numbers

MOST_LANES = 256
LEAST_LANES = 64  # where the window has as many blocks
LEAST_BLOCKS = 16  # in the window
BLOCK_SAMPLES = 200  # in a block, as far as its bytes lie within BLOCK_BYTES
BLOCK_BYTES = (4_000_000, 16_000_000)
KEPT_EPOCHS = 4  # whose order of blocks is remembered
BLOCKS, SAMPLES = 1, 2  # what a key is for


class Blocks(NamedTuple):
    """How the samples of a source lie in blocks."""

    first_K: np.ndarray  # int64: the first sample of each block, and the number of all samples
    bytes: float  # of a block, in the mean


def block_bytes(size: int, samples: int) -> int:
    """Bytes that a block is to have, of data of so many bytes and samples."""
    low, high = BLOCK_BYTES
    return min(high, max(low, BLOCK_SAMPLES * size // max(1, samples)))


class Rows(NamedTuple):
    """What stands at some positions of training; each is an array."""

    source: np.ndarray
    index: np.ndarray  # of the sample in its source
    epoch: np.ndarray
    stream: np.ndarray  # this and the next name the window in which the sample is
    window: np.ndarray


class Piece(NamedTuple):
    """Samples of a block: all of them, or those on one side of a border between lanes."""

    source: int
    start: int  # the first sample
    end: int  # the sample after the last one


class Window(NamedTuple):
    """What is to be read together."""

    first_step: int
    last_step: int
    stream: int
    epoch: int
    number: int
    pieces: tuple[Piece, ...]


class BlockOrder:
    """As `Mixture`, in blocks; the rows of a batch depend on the batch's size too.

    Args:
      blocks: of each source.
      weights: of the sources; None: they are one long source.
      batch_size: rows of a batch of all processes together.
      window: bytes of the blocks that are mixed, of all processes together.
      seed: of the order.
    """

    def __init__(
        self,
        blocks: Sequence[Blocks],
        weights: Sequence[float] | None = None,
        *,
        batch_size: int,
        window: float,
        seed: int,
    ):
        self.batch_size, self.seed = batch_size, seed
        self.lengths = [int(one.first_K[-1]) for one in blocks]
        self._starts_S = np.cumsum([0, *self.lengths])
        self.weighted = weights is not None and len(blocks) > 1
        counts = _counts(weights) if self.weighted else [1]
        self._firsts = (
            [one.first_K for one in blocks] if self.weighted else [_joined(blocks, self._starts_S)]
        )
        number = [len(one.first_K) - 1 for one in blocks]
        self.block_bytes = float(np.average([one.bytes for one in blocks], weights=number))
        self.window_blocks = max(LEAST_BLOCKS, int(window / max(1.0, self.block_bytes)))
        most = max(self.window_blocks // 4, min(self.window_blocks, LEAST_LANES))
        self.lanes = _lanes(batch_size, min(most, max(len(f) // 2 for f in self._firsts)))
        self.lane_blocks = max(1, self.window_blocks // self.lanes)  # in the window of a lane
        self._source_of_T, self._rank_of_T = pattern(counts)
        self._counts = np.array(counts)
        self._places = [np.flatnonzero(self._source_of_T == s) for s in range(len(counts))]
        self._period = int(np.lcm(len(self._source_of_T), self.lanes))
        self._turns = self._find_turns()
        self._in_period = [np.sort(np.concatenate(turns)) for turns in self._turns]
        self._epochs: OrderedDict[tuple[int, int], _Epoch] = OrderedDict()

    def __str__(self) -> str:
        return (
            f"blocks of {self.block_bytes / 1e6:.1f} MB in {self.lanes} lanes, "
            f"{self.lane_blocks} in the window of each"
        )

    def rows(self, positions_B: np.ndarray) -> Rows:
        """What stands at each position; position p is row p % batch_size of its batch."""
        step_B, row_B = np.divmod(np.asarray(positions_B, np.int64), self.batch_size)
        lane_B, turn_B = np.divmod(row_B, self.batch_size // self.lanes)
        place_B = step_B * self.batch_size + turn_B * self.lanes + lane_B
        cycle_B, in_cycle_B = np.divmod(place_B, len(self._source_of_T))
        stream_B = self._source_of_T[in_cycle_B].astype(np.int64)
        rank_B = cycle_B * self._counts[stream_B] + self._rank_of_T[in_cycle_B]
        found = Rows(*np.zeros((5, len(place_B)), np.int64))
        found.stream[:] = stream_B
        for stream, first_K in enumerate(self._firsts):
            mine_B = np.flatnonzero(stream_B == stream)
            found.epoch[mine_B] = rank_B[mine_B] // int(first_K[-1])
            for epoch in np.unique(found.epoch[mine_B]).tolist():
                some_B = mine_B[found.epoch[mine_B] == epoch]
                order = self._epoch(stream, epoch)
                rank = self._lane_rank(stream, lane_B[some_B], place_B[some_B])
                inside_B = rank - order.lane_rank_L[lane_B[some_B]]
                at_B = order.lane_start_L[lane_B[some_B]] + inside_B
                found.index[some_B], found.window[some_B] = order.samples(at_B)
        self._name_sources(found)
        return found

    def another(self, stream: int, epoch: int, window: int, draw: int) -> tuple[int, int]:
        """Source and index of some sample of a window, to stand in for a bad one."""
        order = self._epoch(stream, epoch)
        low, high = order.edge_W[window : window + 2].tolist()
        index = order.sample_at(np.array([low + draw % (high - low)]))
        return self._of_source(stream, int(index[0]))

    def windows(self, rows: range, step: int) -> Iterator[Window]:
        """The windows of some rows of every batch, in the order of the steps that need them first.

        Nothing is in them that is needed before `step` alone. They never end.
        """
        each = self.batch_size // self.lanes
        lanes = range(rows.start // each, -(-rows.stop // each))
        ways = [
            self._windows_of(stream, lane, step)
            for stream in range(len(self._firsts))
            for lane in lanes
        ]
        # Lanes that need theirs at the same step take turns.
        return heapq.merge(*ways, key=lambda window: window.first_step)

    def _windows_of(self, stream: int, lane: int, step: int) -> Iterator[Window]:
        if not len(self._turns[stream][lane]):  # such as each second lane of two even sources
            return
        rank = int(self._lane_rank(stream, np.array([lane]), np.array([step * self.batch_size]))[0])
        while True:
            epoch = self._epoch_of(stream, lane, rank)  # a small source has epochs without the lane
            order = self._epoch(stream, epoch)
            start, end = order.lane_start_L[lane : lane + 2].tolist()
            base = int(order.lane_rank_L[lane])
            at = start + rank - base
            number = int(np.searchsorted(order.edge_W, at, side="right")) - 1
            while at < end:
                low, high = order.edge_W[number : number + 2].tolist()
                first, last = (
                    self._place_of(stream, lane, base + place - start) // self.batch_size
                    for place in (max(at, low), high - 1)
                )
                pieces = tuple(self._pieces(stream, order.pieces(low, high)))
                yield Window(first, last, stream, epoch, number, pieces)
                at, number = high, number + 1
            rank = base + end - start

    def _pieces(self, stream: int, spans: Iterator[tuple[int, int]]) -> Iterator[Piece]:
        for start, end in spans:
            source, first = self._of_source(stream, start)
            yield Piece(source, first, first + end - start)

    def _of_source(self, stream: int, index: int) -> tuple[int, int]:
        if self.weighted:
            return stream, index
        source = int(np.searchsorted(self._starts_S, index, side="right")) - 1
        return source, index - int(self._starts_S[source])

    def _name_sources(self, found: Rows):
        found.source[:] = found.stream
        if not self.weighted:
            found.source[:] = np.searchsorted(self._starts_S, found.index, side="right") - 1
            found.index[:] -= self._starts_S[found.source]

    # ------------------------------------------------------------------ places of each lane

    def _find_turns(self) -> list[list[np.ndarray]]:
        """Of each stream and lane its places in one period."""
        place_Q = np.arange(self._period)
        stream_Q = self._source_of_T[place_Q % len(self._source_of_T)]
        return [
            [
                lane + self.lanes * np.flatnonzero(stream_Q[lane :: self.lanes] == stream)
                for lane in range(self.lanes)
            ]
            for stream in range(len(self._firsts))
        ]

    def _lane_rank(self, stream: int, lane_B: np.ndarray, place_B: np.ndarray) -> np.ndarray:
        """How many places of a stream and a lane come before each place."""
        cycle_B, place_B = np.divmod(place_B, self._period)
        rank_B = np.empty_like(place_B)
        for lane in np.unique(lane_B).tolist():
            turns, mine_B = self._turns[stream][lane], lane_B == lane
            inside_B = np.searchsorted(turns, place_B[mine_B])
            rank_B[mine_B] = cycle_B[mine_B] * len(turns) + inside_B
        return rank_B

    def _lane_ranks(self, stream: int, place: int) -> np.ndarray:
        """The same of every lane, before one place."""
        cycle, inside = divmod(place, self._period)
        places_Q = self._in_period[stream]
        before_Q = places_Q[: np.searchsorted(places_Q, inside)]
        whole, part = (
            np.bincount(some % self.lanes, minlength=self.lanes) for some in (places_Q, before_Q)
        )
        return cycle * whole + part

    def _place_of(self, stream: int, lane: int, rank: int) -> int:
        turns = self._turns[stream][lane]
        cycle, inside = divmod(rank, len(turns))
        return cycle * self._period + int(turns[inside])

    def _epoch_of(self, stream: int, lane: int, rank: int) -> int:
        """The epoch in which a lane has a place of a stream."""
        cycle, inside = divmod(self._place_of(stream, lane, rank), len(self._source_of_T))
        before = cycle * int(self._counts[stream]) + int(self._rank_of_T[inside])
        return before // int(self._firsts[stream][-1])

    def _start_of(self, stream: int, epoch: int) -> int:
        """The place at which an epoch of a stream begins."""
        rank = epoch * int(self._firsts[stream][-1])
        cycle, inside = divmod(rank, int(self._counts[stream]))
        return cycle * len(self._source_of_T) + int(self._places[stream][inside])

    def _epoch(self, stream: int, epoch: int) -> "_Epoch":
        found = self._epochs.get((stream, epoch))
        if found is None:
            starts = (self._start_of(stream, number) for number in (epoch, epoch + 1))
            ranks_2L = [self._lane_ranks(stream, start) for start in starts]
            key = hash64(self.seed, epoch, stream)
            found = _Epoch(self._firsts[stream], *ranks_2L, self.lane_blocks, key)
            self._epochs[stream, epoch] = found
            while len(self._epochs) > KEPT_EPOCHS * len(self._firsts):
                self._epochs.popitem(last=False)
        return found


class _Epoch:
    """One epoch of a stream: the blocks in their order, lanes and windows over their samples."""

    def __init__(
        self,
        first_K: np.ndarray,
        lane_rank_L: np.ndarray,
        next_rank_L: np.ndarray,
        lane_blocks: int,
        key: np.ndarray,
    ):
        self._first_K, self._key = first_K, hash64(key, SAMPLES)
        count = len(first_K) - 1
        self._block_K = permute(np.arange(count), count, hash64(key, BLOCKS))
        sizes_K = np.diff(first_K)[self._block_K]
        self._edge_K = np.concatenate([[0], np.cumsum(sizes_K)])  # of the blocks in their order
        self.lane_rank_L = lane_rank_L  # of the lanes' first places in this epoch
        self.lane_start_L = np.concatenate([[0], np.cumsum(next_rank_L - lane_rank_L)])
        assert self.lane_start_L[-1] == self._edge_K[-1]
        self.edge_W = self._windows(lane_blocks)

    def _windows(self, lane_blocks: int) -> np.ndarray:
        """Where windows begin: with a lane, and after so many blocks; lanes do so at other steps."""
        edges = [self.lane_start_L]
        firsts = np.searchsorted(self._edge_K, self.lane_start_L[:-1], side="right")
        lasts = np.searchsorted(self._edge_K, self.lane_start_L[1:], side="left")
        for lane, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist())):
            edges.append(self._edge_K[first + lane % lane_blocks : last : lane_blocks])
        edge_W = np.sort(np.concatenate(edges), kind="stable")
        return edge_W[np.diff(edge_W, prepend=-1) > 0]

    def samples(self, at_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sample and its window at some places of the epoch."""
        window_B = np.searchsorted(self.edge_W, at_B, side="right") - 1
        low_B = self.edge_W[window_B]
        size_B = self.edge_W[window_B + 1] - low_B
        at_B = low_B + permute(at_B - low_B, size_B, hash64(self._key, window_B))
        return self.sample_at(at_B), window_B

    def sample_at(self, at_B: np.ndarray) -> np.ndarray:
        """The sample at places of the blocks in their order, before windows are mixed."""
        block_B = np.searchsorted(self._edge_K, at_B, side="right") - 1
        return self._first_K[self._block_K[block_B]] + at_B - self._edge_K[block_B]

    def pieces(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """First and last sample of each run between two places."""
        block = int(np.searchsorted(self._edge_K, low, side="right")) - 1
        while low < high:
            end = min(high, int(self._edge_K[block + 1]))
            if end > low:
                first = int(self._first_K[self._block_K[block]]) - int(self._edge_K[block])
                yield first + low, first + end
            low, block = end, block + 1


def _joined(blocks: Sequence[Blocks], starts_S: np.ndarray) -> np.ndarray:
    parts = [one.first_K[:-1] + start for one, start in zip(blocks, starts_S)]
    return np.concatenate([*parts, starts_S[-1:]])


def _lanes(batch_size: int, most: int) -> int:
    """The largest power of two up to `most` that divides the batch."""
    lanes = 1
    while lanes * 2 <= min(most, MOST_LANES) and batch_size % (lanes * 2) == 0:
        lanes *= 2
    return lanes


def _counts(weights: Sequence[float]) -> list[int]:
    """Whole numbers in these proportions; a long cycle is made to end with all lanes together."""
    counts = whole_numbers(weights)
    if rare := rare_shares(weights, counts):
        raise ValueError(
            f"data.weights: a share of {min(rare.values()):.1g} is too small for data.shuffle=block, "
            "which keeps those above about 3e-4: use data.shuffle=global"
        )
    if sum(counts) > 1024:
        counts[int(np.argmax(counts))] += MAX_CYCLE - sum(counts)
    return counts

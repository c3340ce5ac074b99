"""Which sample stands at which place of training: arithmetic on (seed, position), no state."""

from collections.abc import Sequence

import numpy as np

ROUNDS = 6
RARE = 0.01  # error of a share in the pattern above which a source has no place in it
MAX_CYCLE = 1 << 17  # places after which a mixture's pattern repeats, at most


def mix64(x: np.ndarray | int) -> np.ndarray:
    """Scramble 64-bit numbers so that each output bit hangs on every input bit (splitmix64)."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash64(*numbers) -> np.ndarray:
    """One 64-bit number from several; arrays are hashed element by element."""
    state = np.uint64(0)
    for number in numbers:
        state = mix64(state ^ mix64(number))
    return state


def permute(index_B: np.ndarray, n: int | np.ndarray, keys_B: np.ndarray) -> np.ndarray:
    """The places of `index_B` in a pseudo-random order of range(n), one order for each key.

    Of an array `n`, each index has its own.

    A Feistel network over a grid of about sqrt(n) rows and columns, which holds hardly more than
    n places; what falls outside the range is sent through again until it is inside, so that it
    stays a bijection. A shuffled list of 400 million numbers would take 3.2 GB in each process.
    """
    # Grain's shuffle was tried first: at n = 1,000,003 the places of neighbours correlate by 0.4.
    n_B = np.broadcast_to(np.asarray(n, np.uint64), np.shape(index_B))
    rows_B = _square_root(n_B)
    columns_B = (n_B + rows_B - np.uint64(1)) // rows_B
    keys_B = np.broadcast_to(np.asarray(keys_B, np.uint64), np.shape(index_B))
    place_B = _scramble(np.asarray(index_B, np.uint64), rows_B, columns_B, keys_B)
    while (outside_B := place_B >= n_B).any():
        place_B[outside_B] = _scramble(
            place_B[outside_B], rows_B[outside_B], columns_B[outside_B], keys_B[outside_B]
        )
    return place_B.astype(np.int64)


def _square_root(n_B: np.ndarray) -> np.ndarray:
    """The root of each number above 0, rounded up; a float's root of a large one may be off by one."""
    root_B = np.sqrt(n_B.astype(np.float64)).astype(np.uint64)
    root_B = root_B - (root_B * root_B > n_B)
    return root_B + (root_B * root_B < n_B)


def _scramble(
    place_B: np.ndarray, rows_B: np.ndarray, columns_B: np.ndarray, keys_B: np.ndarray
) -> np.ndarray:
    """A bijection of range(rows * columns)."""
    row_B, column_B = np.divmod(place_B, columns_B)
    for number in range(ROUNDS):
        round_keys_B = mix64(keys_B + np.uint64(number))
        if number % 2:
            column_B = (column_B + (mix64(row_B ^ round_keys_B) >> np.uint64(1))) % columns_B
        else:
            row_B = (row_B + (mix64(column_B ^ round_keys_B) >> np.uint64(1))) % rows_B
    return row_B * columns_B + column_B


class Mixture:
    """Shares the places of training out among sources, each in its exact proportion.

    Any stretch of the order holds each source in its proportion to within a few places, and the
    source and the rank within it at a place are a table look-up. A source whose share the table is
    too short for takes places of the others, at exact distances: they skip a sample there. Without
    weights, the sources are one long source: an epoch holds every sample of all of them once.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float] | None = None):
        self.lengths = tuple(lengths)
        self.weighted = weights is not None and len(self.lengths) > 1
        self._starts = np.cumsum([0, *self.lengths])
        if self.weighted:
            counts = whole_numbers(weights)
            self._source_of, self._rank_of = pattern(counts)
            self._rare = rare_shares(weights, counts)
            counts = [0 if number in self._rare else count for number, count in enumerate(counts)]
            self._counts = np.array(counts)

    def rows(self, positions_B: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
        """Source, index within it and epoch of it at each position of training."""
        positions_B = np.asarray(positions_B, np.int64)
        if not self.weighted:
            total = int(self._starts[-1])
            epoch_B, rank_B = np.divmod(positions_B, total)
            place_B = permute(rank_B, total, hash64(seed, epoch_B))
            source_B = np.searchsorted(self._starts, place_B, side="right") - 1
            return source_B, place_B - self._starts[source_B], epoch_B
        cycle_B, place_B = np.divmod(positions_B, len(self._source_of))
        source_B = self._source_of[place_B].astype(np.int64)
        rank_B = cycle_B * self._counts[source_B] + self._rank_of[place_B]
        for number, share in self._rare.items():
            before_B, after_B = (np.floor(share * (positions_B + i) + 0.5) for i in (0, 1))
            here_B = after_B > before_B
            source_B[here_B], rank_B[here_B] = number, before_B[here_B]
        epoch_B, rank_B = np.divmod(rank_B, np.array(self.lengths)[source_B])
        index_B = np.empty_like(rank_B)
        for number, length in enumerate(self.lengths):
            mine = source_B == number
            keys = hash64(seed, epoch_B[mine], number)
            index_B[mine] = permute(rank_B[mine], length, keys)
        return source_B, index_B, epoch_B


def whole_numbers(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in these proportions, to within one part in MAX_CYCLE."""
    share = np.array(weights, float) / np.sum(weights)
    for cycle in range(len(share), 1025):
        counts = np.rint(share * cycle)
        if counts.min() >= 1 and np.allclose(counts, share * cycle, rtol=1e-9):
            return [int(count) for count in counts]
    return [max(1, round(float(s) * MAX_CYCLE)) for s in share]


def rare_shares(weights: Sequence[float], counts: Sequence[int]) -> dict[int, float]:
    """The shares, by their numbers, that whole numbers miss by more than RARE of them."""
    share = np.array(weights, float) / np.sum(weights)
    error = abs(np.array(counts) - share * sum(counts))
    return {
        int(number): float(share[number])
        for number in np.flatnonzero(error > RARE * share * sum(counts))
    }


def pattern(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each place of a cycle the source and its rank there, each source evenly spread.

    The k-th sample of a source with c places in the cycle is due at (k + 1/2) / c of it.
    """
    source = np.repeat(np.arange(len(counts)), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    due = (rank + 0.5) / np.array(counts)[source]
    order = np.lexsort((source, due))
    return source[order].astype(np.int32), rank[order]

"""Near pairs of unit vectors: products in blocks on all devices, decisions in float64.

Letters of axes: R rows of a tile, T columns of a tile. The devices sum float32 products in float32, and
hand over all pairs that are within MARGIN of the threshold or above it. Those are computed again in
float64, so that the result is that of float64 for all pairs, on any number of devices.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.curation.pixels import Check
from clip_jax.curation.vectors import Rows, cosines, unit

MARGIN = 1e-4  # more than the error of a float32 sum of some thousand products of unit vectors
TILE = 4096  # columns that a device compares at once
CACHE_BYTES = 2 << 30  # of columns that stay on the devices, in each
LEAST_ROWS = 64  # compared at once
PAIRS = 1 << 16  # pairs that are computed in float64 at once
NONE = -2.0  # below every cosine


class Found(NamedTuple):
    """What is near to each of R rows."""

    cosine_R: np.ndarray  # float64, the highest one at or above the threshold; NONE: there is none
    index_R: np.ndarray  # int64, the number of that column, the first of equals; -1: there is none
    below_R: np.ndarray  # float32, the highest cosine below the threshold
    below_index_R: np.ndarray  # int64, the number of that column
    # With a check: the pixels' similarity of the first pair, NaN without one; of all pairs that the
    # threshold passes and the check does not the most similar one: its similarity, column and cosine.
    pixels_R: np.ndarray
    refused_R: np.ndarray
    refused_index_R: np.ndarray
    refused_cosine_R: np.ndarray

    @classmethod
    def empty(cls, R: int) -> "Found":
        return cls(
            *(np.full(R, NONE), np.full(R, -1, np.int64)),
            *(np.full(R, NONE, np.float32), np.full(R, -1, np.int64)),
            *(np.full(R, np.nan), np.full(R, NONE), np.full(R, -1, np.int64), np.full(R, NONE)),
        )

    def refuse(self, row_P, number_P, cosine_P, pixels_P):
        """Note pairs that the threshold passes and the check does not."""
        best_P = best_of_rows(row_P, pixels_P)
        best_P = best_P[pixels_P[best_P] > self.refused_R[row_P[best_P]]]
        at = row_P[best_P]
        self.refused_R[at], self.refused_index_R[at] = pixels_P[best_P], number_P[best_P]
        self.refused_cosine_R[at] = cosine_P[best_P]


def best_of_rows(row_P: np.ndarray, value_P: np.ndarray) -> np.ndarray:
    """The pair with the highest value of each row, of equals the first; NaN is below all."""
    value_P = np.where(np.isnan(value_P), -np.inf, value_P)
    order_P = np.lexsort((-np.arange(len(row_P)), value_P))
    return order_P[len(row_P) - 1 - np.unique(row_P[order_P][::-1], return_index=True)[1]]


DROPPED, REFUSED = 10.0, 5.0  # ranks, above all cosines


class Shown(NamedTuple):
    """Of each row what it is nearest to: a confirmed row, else a refused one, else one below the border."""

    value_N: np.ndarray  # the cosine
    partner_N: np.ndarray
    pixels_N: np.ndarray
    rank_N: np.ndarray  # a higher one is nearer; from DROPPED on the row is dropped


def nearest_of(
    index_N, cosine_N, below_N, below_index_N,
    pixels_N, refused_N, refused_index_N, refused_cosine_N, *, above: float,
) -> Shown:  # fmt: skip
    """See `Shown`; the arrays are those of `neighbors.Found` and `duplicates.Nearest`."""
    below_N = np.minimum(below_N.astype(np.float64), np.nextafter(above, 0))
    cases = [index_N >= 0, refused_index_N >= 0]
    return Shown(
        np.select(cases, [cosine_N, refused_cosine_N], below_N),
        np.select(cases, [index_N, refused_index_N], below_index_N),
        np.select(cases, [pixels_N, refused_N], np.nan),
        np.select(cases, [DROPPED + 1 + cosine_N, REFUSED + refused_N], below_N),
    )


class Columns:
    """Vectors that others are compared with; they are appended to, and stay on the devices as they fit.

    Args:
      rows: where the vectors are read from.
      mesh: each device holds a part of each tile.
      tile: columns in a tile, for each device.
      cache_bytes: of the tiles that stay on each device; others are sent again each time.
    """

    def __init__(self, rows: Rows, mesh: Mesh, *, tile: int = TILE, cache_bytes: int = CACHE_BYTES):
        self._rows, self.mesh = rows, mesh
        self._tile = tile * mesh.size
        self._numbers = np.zeros(0, np.int64)
        self._count = 0
        self._cached: list[jax.Array] = []
        self._most_cached = cache_bytes // (tile * rows.dim * 4)

    def __len__(self) -> int:
        return self._count

    def append(self, numbers_N: np.ndarray):
        """Add the vectors with these row numbers."""
        needed = self._count + len(numbers_N)
        if needed > len(self._numbers):
            grown = np.zeros(max(needed, 2 * len(self._numbers), 1024), np.int64)
            grown[: self._count] = self._numbers[: self._count]
            self._numbers = grown
        self._numbers[self._count : needed] = numbers_N
        self._count = needed

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """The row numbers at these places."""
        return self._numbers[places]

    def near(self, z_RE: np.ndarray, threshold: float, check: Check | None = None) -> Found:
        """What is near to each of some unit vectors (R, dim) among all columns.

        With a check, which is given places of rows and numbers of columns, what it confirms alone.
        """
        R = len(z_RE)
        found = Found.empty(R)
        limits = np.float32(threshold - MARGIN), np.float32(threshold)
        # Few shapes, so that few programs are compiled.
        padded = np.zeros((max(LEAST_ROWS, 1 << (R - 1).bit_length()), z_RE.shape[1]), np.float32)
        padded[:R] = z_RE
        z = jax.device_put(padded, NamedSharding(self.mesh, P()))
        for start, tile, count in self._tiles():
            hits, *rest = _scan(self.mesh)(z, tile, np.int32(count), *limits)
            any_R, below_R, place_R = (x[:R] for x in jax.device_get(rest))
            better_R = below_R > found.below_R
            found.below_R[better_R] = below_R[better_R]
            found.below_index_R[better_R] = self._numbers[start + place_R[better_R]]
            if any_R.any():
                self._decide(found, z_RE, np.flatnonzero(any_R), hits, start, threshold, check)
        return found

    def _decide(self, found: Found, z_RE, hit_rows, hits, start: int, threshold: float, check):
        """Compute the pairs that the devices found again, and note the best of each row."""
        packed = np.asarray(hits)[hit_rows]
        row, place = np.nonzero(np.unpackbits(packed, axis=1))
        row = hit_rows[row]
        for at in range(0, len(row), PAIRS):
            row_P, number_P = row[at : at + PAIRS], self._numbers[start + place[at : at + PAIRS]]
            cosine_P = cosines(z_RE[row_P], unit(self._rows, number_P))
            near_P = cosine_P >= threshold
            row_P, number_P, cosine_P = row_P[near_P], number_P[near_P], cosine_P[near_P]
            pixels_P = np.full(len(row_P), np.nan)
            if check is not None:
                pixels_P = check.similar(row_P, number_P)
                refused_P = ~(pixels_P >= check.above)
                pairs = (row_P, number_P, cosine_P, pixels_P)
                found.refuse(*(x_P[refused_P] for x_P in pairs))
                row_P, number_P, cosine_P, pixels_P = (x_P[~refused_P] for x_P in pairs)
            best_P = best_of_rows(row_P, cosine_P)
            best_P = best_P[cosine_P[best_P] > found.cosine_R[row_P[best_P]]]
            at = row_P[best_P]
            found.cosine_R[at], found.index_R[at] = cosine_P[best_P], number_P[best_P]
            found.pixels_R[at] = pixels_P[best_P]

    def _tiles(self) -> Iterator[tuple[int, jax.Array, int]]:
        for start in range(0, self._count, self._tile):
            count = min(self._tile, self._count - start)
            place = start // self._tile
            if place < len(self._cached):
                yield start, self._cached[place], count
                continue
            z_TE = np.zeros((self._tile, self._rows.dim), np.float32)
            z_TE[:count] = unit(self._rows, self._numbers[start : start + count])
            axes = self.mesh.axis_names
            tile = jax.device_put(z_TE, NamedSharding(self.mesh, P(axes, None)))
            if count == self._tile and place == len(self._cached) < self._most_cached:
                self._cached.append(tile)
            yield start, tile, count


@functools.lru_cache(maxsize=4)
def _scan(mesh: Mesh):
    """One tile: which pairs may be near, and the best of each row that is not."""
    whole = NamedSharding(mesh, P())
    columns = NamedSharding(mesh, P(mesh.axis_names, None))

    def scan(z_RE, z_TE, count, candidate, threshold):
        cosine_RT = jnp.einsum(
            "re,te->rt",
            z_RE,
            z_TE,
            precision=jax.lax.Precision.HIGHEST,  # TPUs and GPUs would else round the factors
            preferred_element_type=jnp.float32,
        )
        there_1T = (jnp.arange(cosine_RT.shape[1]) < count)[None, :]
        cosine_RT = jnp.where(there_1T, cosine_RT, NONE)
        hit_RT = cosine_RT >= candidate
        below_RT = jnp.where(cosine_RT < threshold, cosine_RT, NONE)
        packed = jnp.packbits(hit_RT, axis=1)
        return packed, hit_RT.any(axis=1), below_RT.max(axis=1), below_RT.argmax(axis=1)

    return jax.jit(scan, in_shardings=(whole, columns, None, None, None), out_shardings=whole)

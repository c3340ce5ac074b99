"""Near duplicates: a sample is dropped if one before it that is kept is near to it.

The rule is greedy, in a given order: no two kept samples are as near as the threshold, and each dropped
one is as near to a kept one before it. A chain of small changes is not followed to its end, as connected
components would be. Only kept samples are compared with, so that memory is bounded however many copies
one image has.
"""

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from clip_jax.curation.neighbors import CACHE_BYTES, MARGIN, NONE, TILE, Columns, Found
from clip_jax.curation.pixels import Check, of_places
from clip_jax.curation.vectors import Rows, cosines, unit

BLOCK = 1024  # samples that are decided at once
CLUSTER_TILE = 512  # columns of a cluster that a device compares at once, at most


@dataclass(frozen=True)
class Nearest:
    """Of each row of a collection, in the collection's order; rows that took no part have none."""

    partner_N: np.ndarray  # int64, the row that it is near to, the nearest of them; -1: to none
    cosine_N: np.ndarray  # float64, with that row
    below_N: np.ndarray  # float32, the highest cosine below the threshold with a kept row
    below_partner_N: np.ndarray  # int64, that row; -1: there is none
    pixels_N: np.ndarray  # float64, the similarity of its pixels with its partner's, where checked
    # Of all kept rows that are near and whose pixels differ the most similar one: its similarity,
    # number and cosine.
    refused_N: np.ndarray
    refused_partner_N: np.ndarray
    refused_cosine_N: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> "Nearest":
        one = Found.empty(rows)
        return cls(
            *(one.index_R, one.cosine_R, one.below_R, one.below_index_R),
            *(one.pixels_R, one.refused_R, one.refused_index_R, one.refused_cosine_R),
        )


def find_duplicates(
    rows: Rows,
    order_N: np.ndarray,
    threshold: float,
    mesh: Mesh,
    *,
    clusters_NC: np.ndarray | None = None,
    check: Check | None = None,
    block: int = BLOCK,
    tile: int = TILE,
) -> Nearest:
    """Which rows are near to a kept one before them.

    Args:
      rows: the vectors.
      order_N: the row numbers that take part, the first of two near ones is kept.
      threshold: the cosine from which on two are near.
      mesh: whose devices compare them.
      clusters_NC: (len(rows), C) the clusters of each row; only rows with one in common are
        compared. None: all are.
      check: of two row numbers; two are near only if it confirms them as well.
      block: rows that are decided at once, and columns that they are compared with.
      tile: columns that a device compares at once.

    Returns:
      The partners of those that are near to a kept one; all others of `order_N` are kept.
    """
    found = Nearest.empty(len(rows))
    search = _Search(rows, order_N, threshold, mesh, clusters_NC, tile, check)
    for start in range(0, len(order_N), block):
        search.take_block(order_N[start : start + block], found)
    return found


class _Search:
    """The kept rows so far, by cluster."""

    def __init__(self, rows: Rows, order_N, threshold: float, mesh: Mesh, clusters_NC, tile, check):
        self._check = check
        self._rows, self._threshold, self._mesh = rows, threshold, mesh
        self._place_N = np.zeros(len(rows), np.int64)
        self._place_N[order_N] = np.arange(len(order_N))
        self._clusters_NC = clusters_NC
        clusters = 1 if clusters_NC is None else int(clusters_NC.max()) + 1
        tile = tile if clusters_NC is None else min(tile, CLUSTER_TILE)
        self._columns = {"tile": tile, "cache_bytes": CACHE_BYTES // clusters}
        self._kept: dict[int, Columns] = {}

    def take_block(self, number_B: np.ndarray, found: Nearest):
        """Decide some rows, after all before them."""
        z_BE = unit(self._rows, number_B)
        groups = self._groups(number_B)
        for cluster, place_R in groups.items():
            if cluster not in self._kept:
                continue
            number_R = number_B[place_R]
            check = of_places(self._check, number_R)
            near = self._kept[cluster].near(z_BE[place_R], self._threshold, check)
            better_R = near.cosine_R > found.cosine_N[number_R]
            # Of equally near ones in several clusters the first one counts.
            earlier_R = self._place_N[near.index_R] < self._place_N[found.partner_N[number_R]]
            better_R |= (
                (near.cosine_R == found.cosine_N[number_R]) & earlier_R & (near.index_R >= 0)
            )
            found.cosine_N[number_R[better_R]] = near.cosine_R[better_R]
            found.partner_N[number_R[better_R]] = near.index_R[better_R]
            found.pixels_N[number_R[better_R]] = near.pixels_R[better_R]
            refused = (near.refused_R, near.refused_index_R, near.refused_cosine_R)
            _note_refused(found, number_R, *refused)
            _note_below(found, number_R, near.below_R, near.below_index_R)
        # A block is small: the host multiplies it by itself.
        near_BB = np.zeros((len(number_B),) * 2, bool)
        for place_R in groups.values():
            cosine_RR = z_BE[place_R] @ z_BE[place_R].T
            near_BB[np.ix_(place_R, place_R)] |= cosine_RR >= self._threshold - MARGIN
        self._decide_within(number_B, z_BE, near_BB, found)
        kept_B = found.partner_N[number_B] < 0
        for cluster, place_R in groups.items():
            kept_R = place_R[kept_B[place_R]]
            self._note_below_within(number_B[kept_R], z_BE[kept_R], found)
            if cluster not in self._kept:
                self._kept[cluster] = Columns(self._rows, self._mesh, **self._columns)
            self._kept[cluster].append(number_B[kept_R])

    def _groups(self, number_B: np.ndarray) -> dict[int, np.ndarray]:
        """The places of the rows that are compared with one another, by cluster."""
        if self._clusters_NC is None:
            return {0: np.arange(len(number_B))}
        cluster_BC = self._clusters_NC[number_B]
        return {
            int(cluster): np.flatnonzero((cluster_BC == cluster).any(axis=1))
            for cluster in np.unique(cluster_BC)
        }

    def _decide_within(self, number_B, z_BE, near_BB, found: Nearest):
        """The rows of a block among themselves, in their order."""
        later_BB = np.triu(near_BB, 1)
        for row in np.flatnonzero(later_BB.any(axis=1)).tolist():
            if found.partner_N[number_B[row]] >= 0:  # dropped by now
                continue
            place_P = np.flatnonzero(later_BB[row])
            cosine_P, number_P = cosines(z_BE[place_P], z_BE[row]), number_B[place_P]
            better_P = (cosine_P >= self._threshold) & (cosine_P > found.cosine_N[number_P])
            if self._check is not None:
                pixels_P, near_P = np.full(len(number_P), np.nan), np.flatnonzero(better_P)
                row_P = np.full(len(near_P), number_B[row])
                pixels_P[near_P] = self._check.similar(row_P, number_P[near_P])
                refused_P = better_P & (pixels_P < self._check.above)
                refused = (
                    pixels_P[refused_P],
                    row_P[:1].repeat(refused_P.sum()),
                    cosine_P[refused_P],
                )
                _note_refused(found, number_P[refused_P], *refused)
                better_P &= pixels_P >= self._check.above
                found.pixels_N[number_P[better_P]] = pixels_P[better_P]
            found.cosine_N[number_P[better_P]] = cosine_P[better_P]
            found.partner_N[number_P[better_P]] = number_B[row]

    def _note_below_within(self, number_R, z_RE, found: Nearest):
        cosine_RR = np.tril(z_RE @ z_RE.T - NONE, -1) + NONE
        if len(number_R):
            cosine_RR[cosine_RR >= self._threshold] = NONE
            best_R = cosine_RR.argmax(axis=1)
            _note_below(
                found, number_R, cosine_RR[np.arange(len(best_R)), best_R], number_R[best_R]
            )


def _note_below(found: Nearest, number_R, below_R, index_R):
    better_R = below_R > found.below_N[number_R]
    found.below_N[number_R[better_R]] = below_R[better_R]
    found.below_partner_N[number_R[better_R]] = index_R[better_R]


def _note_refused(found: Nearest, number_R, pixels_R, index_R, cosine_R):
    better_R = pixels_R > found.refused_N[number_R]
    at = number_R[better_R]
    found.refused_N[at], found.refused_partner_N[at] = pixels_R[better_R], index_R[better_R]
    found.refused_cosine_N[at] = cosine_R[better_R]

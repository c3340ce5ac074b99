"""Clusters of a large collection, within which near duplicates are looked for, and what that misses.

The centers are rows of the collection, drawn by the seed. A row belongs to its nearest centers, so that
the clusters are a function of embeddings and settings alone. Two rows are compared if they have a cluster
in common; `recall` measures which share of the near pairs that is.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.curation.neighbors import NONE
from clip_jax.curation.vectors import Rows, unit
from clip_jax.data.shuffle import hash64, permute

ROWS = 4096  # that are assigned at once
SAMPLE = 512  # rows whose near pairs are all counted
COLUMNS = 16_384  # that the sample is compared with at once


class Recall(NamedTuple):
    """Near pairs of a sample of rows with all others."""

    pairs: int
    found: int  # of them, with a cluster in common

    def __str__(self) -> str:
        if not self.pairs:
            return "no near pair in the sample: the recall is not known"
        return f"recall {self.found / self.pairs:.4f} ({self.found:_} of {self.pairs:_} near pairs of a sample)"


def assign(rows: Rows, clusters: int, probes: int, seed: int) -> np.ndarray:
    """(len(rows), probes) int32, the nearest centers of each row.

    Raises:
      ValueError: there are more clusters than rows, or more probes than clusters.
    """
    if not probes <= clusters <= len(rows):
        raise ValueError(
            f"duplicates_clusters={clusters} must lie between duplicates_probes={probes} and the "
            f"{len(rows):_} rows"
        )
    center_K = np.sort(permute(np.arange(clusters), len(rows), hash64(seed)))
    centers_KE = jax.device_put(unit(rows, center_K))
    out_NP = np.empty((len(rows), probes), np.int32)
    for start in range(0, len(rows), ROWS):
        rows_N = np.arange(start, min(start + ROWS, len(rows)))
        z_NE = np.zeros((ROWS, rows.dim), np.float32)
        z_NE[: len(rows_N)] = unit(rows, rows_N)
        out_NP[rows_N] = jax.device_get(_nearest(z_NE, centers_KE, probes))[: len(rows_N)]
    return out_NP


def recall(
    rows: Rows, clusters_NP: np.ndarray, threshold: float, seed: int, *, sample: int = SAMPLE
) -> Recall:
    """How many near pairs of a random sample of rows with all others have a cluster in common."""
    count = min(sample, len(rows))
    row_S = np.sort(permute(np.arange(count), len(rows), hash64(seed, 1)))
    z_SE = unit(rows, row_S)
    pairs = found = 0
    for start in range(0, len(rows), COLUMNS):
        rows_T = np.arange(start, min(start + COLUMNS, len(rows)))
        cosine_ST = z_SE @ unit(rows, rows_T).T
        cosine_ST[row_S[:, None] == rows_T] = NONE
        place_P, column_P = np.nonzero(cosine_ST >= threshold)
        one_PC, other_PC = clusters_NP[row_S[place_P]], clusters_NP[rows_T[column_P]]
        pairs += len(place_P)
        found += int((one_PC[:, :, None] == other_PC[:, None]).any(axis=(1, 2)).sum())
    return Recall(pairs, found)


@functools.partial(jax.jit, static_argnums=2)
def _nearest(z_NE: jax.Array, centers_KE: jax.Array, probes: int) -> jax.Array:
    cosine_NK = jnp.einsum("ne,ke->nk", z_NE, centers_KE, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(cosine_NK, probes)[1]

"""Approximate nearest neighbours: a graph of USearch (HNSW, arXiv:1603.09320) in a memory-mapped file."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from usearch.index import Index

from clip_jax.collection.embeddings import Vectors
from clip_jax.search.exact import ExactSearch, Found, best_of
from clip_jax.storage import replacing

log = logging.getLogger(__name__)

CONNECTIVITY = 16  # neighbours of a row in the graph
EXPANSION_ADD = 128  # candidates while a row is added
EXPANSIONS = (64, 128, 256, 512, 1024, 2048, 4096)  # candidates while searching, tried in turn
RECALL_AT = 10
ADDED_AT_ONCE = 20_000
TIE = 1e-6  # of a score that is as good as another


class Recall(NamedTuple):
    """What a search finds of the exact nearest rows."""

    expansion: int  # candidates while searching
    by_query: dict[str, float]  # share of the 10 nearest rows that is found, by the kind of query
    reached: bool


class ApproximateSearch:
    """A graph in a file, which is mapped into memory. Scores are those of the exact vectors."""

    def __init__(self, path: Path, vectors: Vectors, *, expansion: int):
        index = Index.restore(os.fspath(path), view=True)
        if index is None or len(index) != len(vectors) or index.ndim != vectors.dim:
            raise ValueError(f"{path} is not the graph of these embeddings: build the index again")
        self._index, self._vectors = index, vectors
        index.expansion_search = expansion

    def search(self, z_QE: np.ndarray, k: int) -> Found:
        """Most of the `k` nearest rows of each query, (Q, E) float32, with their exact scores."""
        K = min(k, len(self._index))
        matches = self._index.search(np.ascontiguousarray(z_QE, np.float32), K)
        # Of one query USearch gives as many as it found, of several K each and their numbers.
        counts_Q = np.reshape(getattr(matches, "counts", len(matches.keys)), -1)
        keys_QK = np.zeros((len(z_QE), K), np.int64)
        found_QK = np.asarray(matches.keys).astype(np.int64).reshape(len(z_QE), -1)
        keys_QK[:, : found_QK.shape[1]] = found_QK
        known_QK = np.arange(K) < counts_Q[:, None]
        x_QKE = self._vectors.take(np.where(known_QK, keys_QK, 0).ravel())
        x_QKE = x_QKE.reshape(*keys_QK.shape, self._vectors.dim)
        score_QK = np.einsum("qke,qe->qk", x_QKE, z_QE, dtype=np.float32)
        missing = np.zeros((len(z_QE), k - K))
        return best_of(
            np.concatenate([np.where(known_QK, score_QK, -np.inf), missing - np.inf], axis=1),
            np.concatenate([keys_QK, missing - 1], axis=1),
            k,
        )


def build(
    vectors: Vectors,
    path: Path,
    *,
    connectivity: int = CONNECTIVITY,
    expansion_add: int = EXPANSION_ADD,
    report: Callable[[str], None] = lambda text: None,
):
    """Write the graph of all rows to `path`, as float16. A reader never sees half of it."""
    index = Index(
        ndim=vectors.dim,
        metric="ip",
        dtype="f16",
        connectivity=connectivity,
        expansion_add=expansion_add,
    )
    start, shown = time.monotonic(), time.monotonic()
    for first, part_NE in vectors.chunks(ADDED_AT_ONCE):
        keys_N = np.arange(first, first + len(part_NE), dtype=np.uint64)
        index.add(keys_N, np.asarray(part_NE, np.float32))
        done = first + len(part_NE)
        if time.monotonic() - shown > 10 or done == len(vectors):
            shown = time.monotonic()
            rate = done / (shown - start)
            left = (len(vectors) - done) / rate
            report(f"row {done:_}/{len(vectors):_}: {rate:.0f}/s, {left:.0f} s left")
    with replacing(path) as partial:
        index.save(os.fspath(partial))


def tune(
    search: ApproximateSearch,
    exact: ExactSearch,
    queries: dict[str, np.ndarray],
    *,
    target: float,
    expansions: Sequence[int] | None = None,
) -> Recall:
    """Raise the candidates until each kind of query finds `target` of its 10 nearest rows.

    Args:
      search: its `expansion` is left at what was found.
      exact: of the same rows.
      queries: (Q, E) float32 by kind, such as "text".
      target: of recall@10.
      expansions: numbers of candidates that are tried; None: EXPANSIONS.
    """
    expansions = expansions or EXPANSIONS
    least = {kind: exact.search(z_QE, RECALL_AT).score_QK for kind, z_QE in queries.items()}
    found: dict[str, float] = {}
    for expansion in expansions:
        search._index.expansion_search = expansion
        found = {
            kind: recall(search.search(z_QE, RECALL_AT), least[kind])
            for kind, z_QE in queries.items()
        }
        if min(found.values()) >= target:
            return Recall(expansion, found, True)
    return Recall(expansions[-1], found, False)


def recall(found: Found, exact_QK: np.ndarray) -> float:
    """The share of the exact nearest rows that is found; a row with an equal score is as good."""
    wanted_QK = np.isfinite(exact_QK)
    least_Q = np.where(wanted_QK, exact_QK, np.inf).min(axis=1)
    right_QK = found.score_QK >= least_Q[:, None] - TIE
    share_Q = right_QK.sum(axis=1) / np.maximum(1, wanted_QK.sum(axis=1))
    return float(np.minimum(share_Q, 1.0).mean())

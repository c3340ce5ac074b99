"""A graph of near rows: USearch's (HNSW, arXiv:1603.09320), in a memory-mapped file of float16 copies."""

import os
from pathlib import Path

import numpy as np
from usearch.index import Index

from clip_jax.collection.embeddings import Vectors
from clip_jax.search.approximate import Candidates, Graph, Report, reported_chunks
from clip_jax.storage import replacing

ADDED_AT_ONCE = 20_000


def open_file(path: Path, rows: int, dim: int) -> Candidates:
    """The graph of a file, which is mapped into memory.

    Raises:
      ValueError: it is that of other vectors.
    """
    try:
        index = Index.restore(os.fspath(path), view=True)
    except (RuntimeError, ValueError) as error:  # a file that is cut off, or of another program
        raise ValueError(f"{path} cannot be read: build the index again") from error
    if index is None or len(index) != rows or index.ndim != dim:
        raise ValueError(f"{path} is not the graph of these embeddings: build the index again")

    def candidates(z_QE: np.ndarray, k: int, effort: int) -> np.ndarray:
        index.expansion_search = effort
        matches = index.search(np.ascontiguousarray(z_QE, np.float32), k)
        # Of one query USearch gives as many as it found, of several k each and their numbers.
        counts_Q = np.reshape(getattr(matches, "counts", len(matches.keys)), -1)
        row_QK = np.zeros((len(z_QE), k), np.int64)
        found_QK = np.asarray(matches.keys).astype(np.int64).reshape(len(z_QE), -1)
        row_QK[:, : found_QK.shape[1]] = found_QK
        return np.where(np.arange(k) < counts_Q[:, None], row_QK, -1)

    return candidates


def write(vectors: Vectors, path: Path, settings: Graph, report: Report):
    """Write the graph of all rows to `path`. A reader never sees half of it."""
    index = Index(
        ndim=vectors.dim,
        metric="ip",
        dtype="f16",
        connectivity=settings.connectivity,
        expansion_add=settings.expansion_add,
    )
    for first, part_NE in reported_chunks(vectors, ADDED_AT_ONCE, report):
        keys_N = np.arange(first, first + len(part_NE), dtype=np.uint64)
        index.add(keys_N, np.asarray(part_NE, np.float32))
    with replacing(path) as partial:
        index.save(os.fspath(partial))

"""Codes of all rows, compared with each query: faiss' product quantisation in 4 bits (arXiv:1812.09162)."""

# P: the embedding's numbers, filled up to a multiple of those that a code stands for.

import os
from pathlib import Path

import numpy as np

# Threads of OpenMP would else wait for the next search in a loop, and take the cores from the model.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import faiss

from clip_jax.collection.embeddings import Vectors
from clip_jax.search.approximate import Candidates, Codes, Report, reported_chunks
from clip_jax.storage import replacing

TRAINED_ON = 65_536  # rows, of which the codes' 16 values each are means
ADDED_AT_ONCE = 20_000


def open_file(path: Path, rows: int, dim: int) -> Candidates:
    """The codes of a file, which are read into memory.

    Raises:
      ValueError: they are those of other vectors, or no codes.
    """
    try:
        index = faiss.read_index(os.fspath(path))
    except RuntimeError as error:  # a file that is cut off, or of another program
        raise ValueError(f"{path} cannot be read: build the index again") from error
    fits = isinstance(index, faiss.IndexPQFastScan) and index.ntotal == rows
    if not fits or not dim <= index.d < dim + index.pq.dsub:
        raise ValueError(f"{path} has not the codes of these embeddings: build the index again")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    def candidates(z_QE: np.ndarray, k: int, effort: int) -> np.ndarray:
        # The number is one of the thread that calls, and there is one for each query at most.
        faiss.omp_set_num_threads(max(1, min(cores or 1, len(z_QE))))
        _, row_QC = index.search(_filled(z_QE, index.d), min(rows, k + max(k, effort)))
        return _with_lowest(row_QC, rows)

    return candidates


def write(vectors: Vectors, path: Path, settings: Codes, report: Report):
    """Write the codes of all rows to `path`. A reader never sees half of them."""
    pieces = -(-vectors.dim // settings.numbers)
    index = faiss.IndexPQFastScan(pieces * settings.numbers, pieces, 4, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    rows_N = rng.choice(len(vectors), min(TRAINED_ON, len(vectors)), replace=False)
    index.train(_filled(vectors.take(np.sort(rows_N)), index.d))
    for _, part_NE in reported_chunks(vectors, ADDED_AT_ONCE, report):
        index.add(_filled(part_NE, index.d))
    with replacing(path) as partial:
        faiss.write_index(index, os.fspath(partial))


def _with_lowest(row_QC: np.ndarray, rows: int) -> np.ndarray:
    """With rows in place of -1: faiss leaves out those with the lowest score that a code can have."""
    for row_C in row_QC:
        if missing := int((row_C < 0).sum()):
            left_N = np.ones(rows, bool)
            left_N[row_C[row_C >= 0]] = False
            row_C[row_C < 0] = np.flatnonzero(left_N)[:missing]
    return row_QC


def _filled(x_NE: np.ndarray, width: int) -> np.ndarray:
    """(N, P) float32, with zeros at the end, which change no product."""
    x_NP = np.zeros((len(x_NE), width), np.float32)
    x_NP[:, : x_NE.shape[1]] = x_NE
    return x_NP

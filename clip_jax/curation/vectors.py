"""Unit vectors by row, wherever they lie: what filters and maps read."""

from typing import Protocol

import numpy as np

CHUNK = 1 << 15  # rows that are read at once


class Rows(Protocol):
    """Embeddings by row number; `clip_jax.collection.embeddings.Vectors` is one."""

    dim: int

    def __len__(self) -> int: ...

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """(N, dim) float32."""
        ...


class ArrayRows:
    """The rows of an array in memory."""

    def __init__(self, z_NE: np.ndarray):
        self._z_NE, self.dim = np.asarray(z_NE, np.float32), z_NE.shape[1]

    def __len__(self) -> int:
        return len(self._z_NE)

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        return self._z_NE[rows_N]


def unit(rows: Rows, rows_N: np.ndarray) -> np.ndarray:
    """(N, dim) float32 of unit length: stored vectors are rounded, so that they are divided again.

    Raises:
      ValueError: a vector is zero or not finite.
    """
    z_NE = rows.take(rows_N).astype(np.float64)
    length_N = np.sqrt((z_NE * z_NE).sum(axis=1))
    wrong_N = ~(np.isfinite(length_N) & (length_N > 0))
    if wrong_N.any():
        first = int(np.asarray(rows_N)[np.flatnonzero(wrong_N)[0]])
        raise ValueError(
            f"the embeddings of {int(wrong_N.sum())} rows are zero or not finite, such as row {first}: "
            "embed the source again with a model that is trained"
        )
    return (z_NE / length_N[:, None]).astype(np.float32)


def cosines(a_NE: np.ndarray, b_NE: np.ndarray) -> np.ndarray:
    """The cosine of each pair of float32 unit vectors, summed in float64.

    Every decision is made on these, so that neither the number of devices nor their kind changes one.
    """
    return (a_NE.astype(np.float64) * b_NE).sum(axis=1)


def pair_scores(image: Rows, text: Rows) -> np.ndarray:
    """(N,) float64: the cosine of each image with its own text."""
    score_N = np.empty(len(image))
    for start in range(0, len(image), CHUNK):
        rows_N = np.arange(start, min(start + CHUNK, len(image)))
        score_N[rows_N] = cosines(unit(image, rows_N), unit(text, rows_N))
    return score_N

"""Exact nearest neighbours by dot product, over all devices of a mesh, in chunks of the rows."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.collection.embeddings import Vectors

CHUNK = 16_384  # rows in a device at once: 34 MB as float32 of width 512
BLOCK = 2_048  # rows that a CPU widens at once: 4 MB
MOST_QUERIES = 1024  # at once
LEAST_K = 64  # results that are looked for at least
MOST_ROWS = 2**31 - 2  # numbers of rows are int32 on the devices


class Found(NamedTuple):
    """The nearest rows of each query, the best first; equal ones by their number."""

    score_QK: np.ndarray  # float32, dot products: cosines, as vectors have unit length
    row_QK: np.ndarray  # int64; -1 where there are fewer than K rows, with a score of -inf


class ExactSearch:
    """All rows are compared with each query, in float32.

    Args:
      vectors: the rows.
      mesh: all of its devices take part.
      resident: keep the rows on the devices. If not, they are read from the disk for each search.

    Raises:
      ValueError: there are too many rows for one index.
    """

    def __init__(self, vectors: Vectors, mesh: Mesh, *, resident: bool, chunk: int = CHUNK):
        if len(vectors) > MOST_ROWS:
            raise ValueError(f"{len(vectors):_} rows are more than {MOST_ROWS:_}: split them")
        self._vectors, self._mesh = vectors, mesh
        share = max(1, min(chunk, -(-len(vectors) // mesh.size)))
        if share > BLOCK:
            share = -(-share // BLOCK) * BLOCK
        self._chunk = mesh.size * share
        self._resident = list(self._on_devices()) if resident else None

    def search(self, z_QE: np.ndarray, k: int) -> Found:
        """The `k` nearest rows of each query, (Q, E) float32."""
        known = min(k, len(self._vectors))  # what devices hold does not grow with what is not there
        parts = [
            self._search(z_QE[first : first + MOST_QUERIES], known)
            for first in range(0, len(z_QE), MOST_QUERIES)
        ]
        missing = ((0, 0), (0, k - known))
        score_QK, row_QK = (np.concatenate(arrays) for arrays in zip(*parts))
        return Found(
            np.pad(score_QK, missing, constant_values=-np.inf),
            np.pad(row_QK, missing, constant_values=-1),
        )

    def _search(self, z_QE: np.ndarray, k: int) -> Found:
        # Few numbers of queries and of results, as each pair of them is a program of its own.
        z_PE = np.zeros((_power_of_two(len(z_QE)), z_QE.shape[1]), np.float32)
        z_PE[: len(z_QE)] = z_QE
        devices = self._mesh.size
        rows = NamedSharding(self._mesh, P(sharding.AXES))
        z = jax.device_put(z_PE, sharding.replicated(self._mesh))
        shape = (devices, len(z_PE), _power_of_two(max(k, LEAST_K)))
        best = (
            jax.device_put(np.full(shape, -np.inf, np.float32), rows),
            jax.device_put(np.full(shape, -1, np.int32), rows),
        )
        merge = _merge(self._mesh)
        for first, count, x_CE in self._resident or self._on_devices():
            best = merge(*best, z, x_CE, np.int32(first), np.int32(count))
        score_DPK, row_DPK = jax.device_get(best)
        return best_of(
            score_DPK.transpose(1, 0, 2).reshape(len(z_PE), -1)[: len(z_QE)],
            row_DPK.transpose(1, 0, 2).reshape(len(z_PE), -1)[: len(z_QE)],
            k,
        )

    def _on_devices(self):
        """First row, number of rows, and the rows over the devices, the last chunk filled up."""
        place = sharding.batch_sharding(self._mesh)
        kind = self._vectors.dtype if self._vectors.dtype.itemsize <= 4 else np.dtype(np.float32)
        total, C = len(self._vectors), self._chunk
        for first in range(0, total, C):
            count = min(C, total - first)
            x_CE = np.zeros((C, self._vectors.dim), kind)
            self._vectors.read(first, x_CE[:count])
            yield first, count, jax.device_put(x_CE, place)


def unit(z_QE: np.ndarray) -> np.ndarray:
    """Vectors of unit length in the same directions; zero stays zero."""
    # In float64, as float32 has no squares of numbers above 1e19 or below 1e-23.
    length_Q1 = np.linalg.norm(z_QE.astype(np.float64), axis=-1, keepdims=True)
    return (z_QE / np.where(length_Q1 > 0, length_Q1, 1)).astype(np.float32)


def best_of(score_QN: np.ndarray, row_QN: np.ndarray, k: int) -> Found:
    """The first `k` of each query's candidates, by score and then by row."""
    order_QK = np.lexsort((row_QN, -score_QN), axis=1)[:, :k]
    score_QK = np.take_along_axis(score_QN, order_QK, 1)
    row_QK = np.take_along_axis(row_QN, order_QK, 1).astype(np.int64)
    return Found(score_QK, np.where(np.isneginf(score_QK), -1, row_QK))


def _power_of_two(count: int) -> int:
    return 2 ** math.ceil(math.log2(count))


@functools.lru_cache(maxsize=8)
def _merge(mesh: Mesh):
    """The best rows so far and those of a chunk to the best of both, on each device by itself."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def merge(score_1QK, row_1QK, z_QE, x_CE, first, count):
        K, C = score_1QK.shape[2], x_CE.shape[0]
        place_C = jax.lax.axis_index(sharding.AXES) * C + jnp.arange(C, dtype=jnp.int32)
        score_QC = _scores(z_QE, x_CE, in_blocks=on_cpu)
        usable_QC = (place_C < count)[None, :] & ~jnp.isnan(score_QC)
        score_QC = jnp.where(usable_QC, score_QC, -jnp.inf)
        new_QK, at_QK = jax.lax.top_k(score_QC, min(K, C))
        # Rows so far come first: of equal scores `top_k` keeps those, which have lower numbers.
        score_QN = jnp.concatenate([score_1QK[0], new_QK], axis=1)
        row_QN = jnp.concatenate([row_1QK[0], first + place_C[at_QK]], axis=1)
        score_QK, at_QK = jax.lax.top_k(score_QN, K)
        return score_QK[None], jnp.take_along_axis(row_QN, at_QK, axis=1)[None]

    rows = P(sharding.AXES)
    mapped = jax.shard_map(
        merge,
        mesh=mesh,
        in_specs=(rows, rows, P(), rows, P(), P()),
        out_specs=(rows, rows),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=(0, 1))


def _scores(z_QE: jax.Array, x_CE: jax.Array, *, in_blocks: bool) -> jax.Array:
    """The products of queries and rows, (Q, C) float32.

    On a CPU in blocks of rows, whose float32 stays in the cache: as one array it is fresh memory, which
    takes four times as long as all else.
    """

    def product(x_BE: jax.Array) -> jax.Array:
        # HIGHEST: else an accelerator rounds the factors to bfloat16, and near scores swap.
        return jnp.matmul(z_QE, x_BE.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)

    C, E = x_CE.shape
    if not in_blocks or C % BLOCK or C == BLOCK:
        return product(x_CE)
    score_NQB = jax.lax.map(product, x_CE.reshape(C // BLOCK, BLOCK, E))
    return score_NQB.transpose(1, 0, 2).reshape(len(z_QE), C)


def search_rows(vectors: Vectors, rows_N: np.ndarray, z_QE: np.ndarray, k: int) -> Found:
    """The nearest of some rows, compared on the host, as `ExactSearch` gives them."""
    k_here = min(k, max(1, len(rows_N)))
    best = Found(
        np.full((len(z_QE), k), -np.inf, np.float32), np.full((len(z_QE), k), -1, np.int64)
    )
    for first in range(0, len(rows_N), CHUNK):
        here_C = rows_N[first : first + CHUNK]
        score_QC = z_QE @ vectors.take(here_C).T
        score_QC = np.where(np.isnan(score_QC), -np.inf, score_QC).astype(np.float32)
        if score_QC.shape[1] > 4 * k_here:
            # All that tie with the last are candidates too, so that the order is by number.
            least_Q1 = -np.partition(-score_QC, k_here - 1, axis=1)[:, k_here - 1 : k_here]
            at = np.flatnonzero((score_QC >= least_Q1).any(axis=0))
            score_QC, here_C = score_QC[:, at], here_C[at]
        row_QC = np.broadcast_to(here_C, score_QC.shape)
        best = best_of(
            np.concatenate([best.score_QK, score_QC], axis=1),
            np.concatenate([best.row_QK, row_QC], axis=1),
            k,
        )
    return best

"""At which place the right answer comes, for every query at once, over all devices of a mesh."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.evaluation.encode import check_stop, put

ROWS = 512  # queries that a device holds at once: 512 x 25,000 scores are 51 MB


class Ranks(NamedTuple):
    """What surrounds the best right answer of each query. B counts queries here.

    Equal scores are in no order, so a tie is shared out: a query counts by the chance that a random
    order of the equal ones puts a right answer in front. A model that gives everything the same
    score then measures exactly what guessing does, and copies of a caption cost what they should.
    """

    better_B: np.ndarray  # wrong answers with a higher score (or a score that is not a number)
    tied_B: np.ndarray  # wrong answers with the same score
    right_B: np.ndarray  # right answers with that score, at least 1

    def found(self, k: int) -> np.ndarray:
        """For each query, the probability that a right answer is among the first k."""
        missed_B = np.ones(len(self.better_B))
        for place in range(k):
            # The tied stand at places better, better + 1, ...; draw them without replacement.
            drawn_B = place - self.better_B
            wrong_left_B = np.maximum(self.tied_B - drawn_B, 0)
            missed_B = np.where(
                drawn_B >= 0, missed_B * wrong_left_B / (wrong_left_B + self.right_B), missed_B
            )
        return 1 - missed_B

    def expected(self) -> np.ndarray:
        """For each query, the expected rank of its first right answer; 1 is the best."""
        return self.better_B + (self.tied_B + self.right_B + 1) / (self.right_B + 1)


def rank(
    z_query_QE: np.ndarray,
    owner_Q: np.ndarray,
    z_gallery_GE: np.ndarray,
    owner_G: np.ndarray,
    *,
    mesh: Mesh,
    rows: int = ROWS,
    should_stop: Callable[[], bool] | None = None,
) -> Ranks:
    """Rank a gallery (axis G) for every query (axis Q) by dot product.

    An answer is right when its owner equals the query's. Queries are split over all devices, `rows`
    at a time in each, and the gallery is on every device, so a device holds rows x gallery scores.

    Args:
      z_query_QE: (queries, embedding), the same in every process.
      owner_Q: (queries,) integers of 0 and above, each of which occurs in `owner_G`.
      z_gallery_GE: (gallery, embedding).
      owner_G: (gallery,) integers.
      mesh: the devices to use.
      rows: queries in a device at once; fewer are taken where there are fewer.
      should_stop: asked before each chunk.
    """
    Q = len(z_query_QE)
    assert Q and np.isin(owner_Q, owner_G).all(), "every query needs a right answer"
    gallery = _on_all(mesh, z_gallery_GE, np.float32), _on_all(mesh, owner_G, np.int32)
    counts = [
        _count(mesh)(query_BE, owner_B, *gallery)
        for query_BE, owner_B in _chunks(mesh, rows, should_stop, z_query_QE, owner_Q)
    ]
    better_B, tied_B, right_B = np.concatenate(jax.device_get(counts), axis=1)[:, :Q]
    return Ranks(better_B, tied_B, np.maximum(right_B, 1))


def nearest(
    z_query_QE: np.ndarray,
    z_gallery_GE: np.ndarray,
    count: int = 1,
    *,
    mesh: Mesh,
    rows: int = ROWS,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a gallery with the highest dot products, for every query (axis Q).

    Args:
      z_query_QE: (queries, embedding), the same in every process.
      z_gallery_GE: (gallery, embedding).
      count: how many of each query; at most the gallery.
      mesh, rows, should_stop: see `rank`.

    Returns:
      Scores (queries, count) float32, the highest first, and rows (queries, count) int32. Of equal
      scores the first row comes first.
    """
    Q = len(z_query_QE)
    gallery_GE = _on_all(mesh, z_gallery_GE, np.float32)
    found = [
        _nearest(mesh, count)(query_BE, gallery_GE)
        for (query_BE,) in _chunks(mesh, rows, should_stop, z_query_QE)
    ]
    scores, indices = zip(*jax.device_get(found))
    return np.concatenate(scores)[:Q], np.concatenate(indices)[:Q]


def _on_all(mesh: Mesh, x: np.ndarray, dtype) -> jax.Array:
    return put(x.astype(dtype), sharding.replicated(mesh))


def _chunks(mesh: Mesh, rows: int, should_stop, z_query_QE: np.ndarray, *columns: np.ndarray):
    """Queries, and integers of each, some at a time, split over the devices."""
    Q, split = len(z_query_QE), sharding.batch_sharding(mesh)
    chunk = mesh.size * min(rows, -(-Q // mesh.size))
    for start in range(0, Q, chunk):
        check_stop(should_stop)
        # The last chunk is filled up with copies of a query, which the caller cuts off.
        take = np.minimum(np.arange(start, start + chunk), Q - 1)
        query_BE = put(z_query_QE[take].astype(np.float32), split)
        yield query_BE, *(put(column[take].astype(np.int32), split) for column in columns)


@functools.lru_cache(maxsize=4)
def _nearest(mesh: Mesh, count: int):
    """Compiled once for each size of gallery."""

    def top(z_query_QE: jax.Array, z_gallery_GE: jax.Array):
        # As in `count`: the default precision would tie what is not equal.
        score_QG = jnp.matmul(z_query_QE, z_gallery_GE.T, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.top_k(score_QG, count)

    return jax.jit(top, out_shardings=sharding.replicated(mesh))


@functools.lru_cache(maxsize=4)
def _count(mesh: Mesh):
    """Compiled once for each size of gallery."""
    return jax.jit(count, out_shardings=sharding.replicated(mesh))


def count(
    z_query_QE: jax.Array, owner_Q: jax.Array, z_gallery_GE: jax.Array, owner_G: jax.Array
) -> jax.Array:
    """(3, queries): the wrong answers above the best right one, those equal to it, the right ones."""
    # On accelerators the default would round the factors to bfloat16 and tie what is not equal.
    score_QG = jnp.matmul(z_query_QE, z_gallery_GE.T, precision=jax.lax.Precision.HIGHEST)
    right_QG = owner_Q[:, None] == owner_G[None, :]
    best_Q1 = jnp.where(right_QG, score_QG, -jnp.inf).max(axis=1, keepdims=True)
    equal_QG = score_QG == best_Q1
    # Not "greater": whatever compares with no number counts against the model.
    better_QG = ~(score_QG <= best_Q1)
    sets = (~right_QG & better_QG, ~right_QG & equal_QG, right_QG & equal_QG)
    return jnp.stack([x_QG.sum(axis=1, dtype=jnp.int32) for x_QG in sets])

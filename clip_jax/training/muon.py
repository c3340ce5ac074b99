"""Muon: momentum whose matrices are orthogonalised (Jordan et al., 2024)."""

import functools
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from clip_jax.models.tower import Tower, name_of
from clip_jax.sharding import path_name

log = logging.getLogger(__name__)

ORTHOGONALISED = r"(blocks|pool|conv)/.*kernel$"
# Numbers of axes whose meaning is known: of kernels in a stack, the depth among them, and of others.
KNOWN_AXES = {"stacked": (2, 3, 5), "alone": (2, 4)}


def muon(
    *, b1: float, b2: float, eps: float, moment_dtype: Any, towers: Mapping[str, Tower]
) -> optax.GradientTransformation:
    """Orthogonalised momentum for the matrices of blocks, pooling and convolutions, Adam for all else.

    A convolution's kernel is taken as the matrix from all of its inputs to its channels. The queries,
    keys and values of each head are matrices of their own (`Tower.matrices_of`), which makes a kernel
    of D x D cost as many operations as its heads are wide, not D.

    Updates are scaled to the size that Adam's have, so that one learning rate and one weight
    decay serve both (arXiv:2502.16982, section 2.2).
    """

    def label(path, leaf):
        known = re.search(ORTHOGONALISED, path_name(path))
        axes = KNOWN_AXES["stacked" if known and known[1] == "blocks" else "alone"]
        return "muon" if known and leaf.ndim in axes else "adam"

    def labels(params):
        found = jax.tree_util.tree_map_with_path(label, params)
        for tower in sorted(params.keys() & towers.keys()):
            if "muon" not in jax.tree.leaves(found[tower]):
                _warn_of_adam(tower, name_of(towers[tower]))
        return found

    orthogonal = optax.contrib.scale_by_muon(
        beta=b1,
        mu_dtype=moment_dtype,
        weight_dimension_numbers=_matrix_axes,
        ns_steps=4,  # with this start as good as five (arXiv:2512.04632)
        preconditioning="aol",
    )
    return optax.partition(
        {
            "muon": _by_matrix(optax.chain(orthogonal, optax.stateless(_scale_like_adam)), towers),
            "adam": optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype),
        },
        labels,
    )


@functools.cache  # optax asks for the labels several times
def _warn_of_adam(tower: str, name: str):
    log.warning(
        "optimizer.name=muon leaves all of the %s tower %s to Adam: it takes kernels of parts named blocks, "
        "pool or conv, of the axes (depth, inputs, outputs), (inputs, outputs) and (height, width, inputs, "
        "outputs)", tower, name,
    )  # fmt: skip


def _by_matrix(
    inner: optax.GradientTransformation, towers: Mapping[str, Tower]
) -> optax.GradientTransformation:
    """`inner` sees the kernels that hold several matrices side by side with an axis for these.

    Its state keeps the shapes of the parameters, and with them their names and shardings.
    """

    def split(tree):
        def matrices(path, leaf):
            tower, _, name = path_name(path).partition("/")
            count = towers[tower].matrices_of(name) if tower in towers else 1
            if leaf.shape[-1] % count:
                raise ValueError(
                    f"{name_of(towers[tower])}.matrices_of({name!r}) is {count}, and the kernel has "
                    f"{leaf.shape[-1]} outputs, which cannot be shared out among so many"
                )
            # Every kernel gets the axis, so that each has the axes of `_matrix_axes`.
            return leaf.reshape(*leaf.shape[:-1], count, leaf.shape[-1] // count)

        return jax.tree_util.tree_map_with_path(matrices, tree)

    def update(updates, state, params=None):
        del params
        momentum, *rest = state
        found, (momentum, *rest) = inner.update(
            split(updates), (momentum._replace(mu=split(momentum.mu)), *rest)
        )
        joined, mu = (
            jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), tree, updates)
            for tree in (found, momentum.mu)
        )
        return joined, (momentum._replace(mu=mu), *rest)

    return optax.GradientTransformation(inner.init, update)


def _matrix_axes(kernels: Any) -> Any:
    """Kernels are (inputs, matrices, outputs) or (height, width, inputs, matrices, outputs); stacked ones
    have the depth before these. It and the matrices are batch axes."""

    def axes(kernel):
        first = 1 if kernel.ndim in (4, 6) else 0
        last = kernel.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last - 1)), (last,))

    return jax.tree.map(axes, kernels)


def _scale_like_adam(updates: Any, params: Any = None) -> Any:
    """Orthogonal matrices (I, O) have entries of size max(I, O)^-0.5; Adam's updates are near 0.2."""
    del params

    def scale(update, axes):
        sides = (math.prod(update.shape[i] for i in side) for side in axes)
        return 0.2 * max(sides) ** 0.5 * update

    return jax.tree.map(scale, updates, _matrix_axes(updates))

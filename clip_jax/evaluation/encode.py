"""Embeds a whole data set on all devices of a mesh."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.models.clip import sharding_rows
from clip_jax.models.tower import TextTower

TRIMMED_TO = 16  # a multiple of this many tokens is kept of texts
IN_FLIGHT = 2  # batches handed to the devices before the first one's result is waited for


class Stopped(Exception):
    """The evaluation was asked to stop before its end."""


class Encoded(NamedTuple):
    """Embeddings in the order of the data set, the same in every process."""

    z_NE: np.ndarray  # float32, unit length; the samples that could not be read are missing
    index_N: np.ndarray  # number of each in the data set, rising


class Encoder:
    """A model's two encoders over a mesh: batches are split over all devices.

    Parameters stay where they are if that is on the mesh, and are placed by the rules of
    `sharding` if not. Each encoder is compiled once for a model and a mesh, however many times an
    `Encoder` is made of them.
    """

    def __init__(self, model: nn.Module, variables: Any, mesh: Mesh, *, batch_size: int = 256):
        sharding.check_batch("evaluation.batch_size", batch_size, mesh)
        self.mesh = mesh
        self.batch_size = batch_size
        self.variables = _place(variables, mesh, sharding_rows(model.config))
        self._image = _compiled(model, "encode_image", mesh)
        self._text = _compiled(model, "encode_text", mesh)

    def encode_images(
        self, batches: Iterable[dict], *, should_stop: Callable[[], bool] | None = None
    ) -> Encoded:
        """Embed all images of the batches whose mask is set.

        Args:
          batches: as `eval_batches` yields them, of this process's rows: "image" (rows, H, W, 3)
            uint8, "mask" (rows,) bool and "index" (rows,) int.
          should_stop: asked before each batch.

        Raises:
          Stopped: `should_stop` said so.
        """
        embedded = list(self._embed_images(batches, should_stop))
        if not embedded:
            return Encoded(np.zeros((0, 0), np.float32), np.zeros((0,), np.int64))
        z_NE, index_N = (np.concatenate(parts) for parts in zip(*embedded))
        kept = index_N >= 0
        order = np.argsort(index_N[kept], kind="stable")
        return Encoded(z_NE[kept][order], index_N[kept][order].astype(np.int64))

    def _embed_images(self, batches, should_stop) -> Iterator[tuple]:
        def start(batch):
            index_B = np.where(batch["mask"], batch["index"], -1).astype(np.int32)
            local = {"x": np.asarray(batch["image"]), "index": index_B}
            return self._image(self.variables, **sharding.to_global(self.mesh, local))

        return _overlapped(start, batches, should_stop)

    def encode_pairs(self, batches: Iterable[dict]) -> Iterator[tuple[dict, dict]]:
        """Embed batches one after another, with the devices some batches ahead of the caller.

        Args:
          batches: of this process's rows, with "image" (rows, H, W, 3) uint8, "tokens" (rows,
            length) int32, or both. Where there are several processes, all have as many batches.

        Yields:
          Each batch, and its embeddings as {"image": ..., "text": ...}, (rows of all processes,
          embedding) float32 of unit length, without what the batch lacks.
        """
        encoders = {"image": ("image", self._image), "text": ("tokens", self._text)}

        def start(batch):
            found = {}
            for kind, (name, encode) in encoders.items():
                if name in batch:
                    x = sharding.to_global(self.mesh, np.asarray(batch[name]))
                    found[kind] = encode(self.variables, x=x)[0]
            return found

        read: deque[dict] = deque()

        def noted():
            for batch in batches:
                read.append(batch)
                yield batch

        for found in _overlapped(start, noted(), None):
            yield read.popleft(), found

    def encode_texts(
        self, tokens_ML: np.ndarray, *, should_stop: Callable[[], bool] | None = None
    ) -> np.ndarray:
        """Embed texts that every process has.

        Args:
          tokens_ML: (texts, length) int32.
          should_stop: asked before each batch.

        Returns:
          (texts, embedding) float32 of unit length, in the same order, in every process.

        Raises:
          Stopped: `should_stop` said so.
        """
        M, B = len(tokens_ML), self.batch_size
        split = sharding.batch_sharding(self.mesh)

        def start(first):
            tokens_BL = np.zeros((B, tokens_ML.shape[1]), np.int32)
            rows = tokens_ML[first : first + B]
            tokens_BL[: len(rows)] = rows
            return self._text(self.variables, x=put(tokens_BL, split))

        embedded = list(_overlapped(start, range(0, M, B), should_stop))
        return np.concatenate([z_BE for z_BE, _ in embedded])[:M]


def trim(text: TextTower, tokens_BL: np.ndarray) -> np.ndarray:
    """The tokens without what no embedding depends on, at one of few lengths.

    A caption of CLIP has some 15 of 77 tokens, so most of the text tower's work is on padding.
    Each length is a program of its own. The embeddings change by rounding only.

    Args:
      text: the model's text tower.
      tokens_BL: (texts, length) int32.
    """
    length = -(-text.read_length(tokens_BL) // TRIMMED_TO) * TRIMMED_TO
    return tokens_BL[:, :length]


def check_finite(z_NE: np.ndarray, what: str):
    """Refuse embeddings with numbers that are not finite: whatever is made of them would be wrong.

    Raises:
      ValueError: there are such rows; it says how many.
    """
    wrong_N = ~np.isfinite(z_NE).all(axis=1)
    if wrong_N.any():
        raise ValueError(
            f"the model's embeddings of {int(wrong_N.sum())} of {len(z_NE)} {what} are not finite: its "
            "parameters are not, or they are too large for its dtype"
        )


def check_stop(should_stop: Callable[[], bool] | None):
    """Raise `Stopped` if the caller wants the evaluation to end."""
    if should_stop is not None and should_stop():
        raise Stopped


def put(x: np.ndarray, to: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has in full, on the devices of all of them."""
    return jax.make_array_from_callback(x.shape, to, lambda index: x[index])


def _overlapped(start: Callable, items: Iterable, should_stop) -> Iterator[tuple]:
    """Host results of `start(item)` in order, with the devices some items ahead of the host."""
    waiting = []
    for item in items:
        check_stop(should_stop)
        waiting.append(start(item))
        if len(waiting) > IN_FLIGHT:
            yield jax.device_get(waiting.pop(0))
    yield from jax.device_get(waiting)


@functools.lru_cache(maxsize=8)
def _compiled(model: nn.Module, method: str, mesh: Mesh):
    """One encoder as a jitted function whose results are on every device."""
    # The constraint keeps the batch split where parameters are sharded; see models/layers.py.
    model = model.clone(constrain=sharding.constrain_batch(mesh), checked=False)

    def embed(variables, x, index=None):
        return model.apply(variables, x, method=method), index

    return jax.jit(embed, out_shardings=sharding.replicated(mesh))


def _place(variables: Any, mesh: Mesh, rows: sharding.Rows) -> Any:
    """Put the parameters that are not on the mesh there, once and not with every batch."""
    devices = set(mesh.devices.flat)

    def put(leaf, to):
        on_mesh = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
        return leaf if on_mesh else jax.device_put(leaf, to)

    return jax.tree.map(put, variables, sharding.shardings(mesh, variables, rows=rows))

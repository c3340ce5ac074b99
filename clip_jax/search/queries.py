"""Queries of texts, pictures and rows, with weights, to vectors; those that come together are one batch."""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from clip_jax.collection.embed import model_fingerprint
from clip_jax.data.images.formats import is_image
from clip_jax.data.images.transforms import ImageError, decode, eval_image
from clip_jax.load import load_to_host
from clip_jax.search.exact import unit
from clip_jax.search.index import SearchIndex
from clip_jax.search.model import QueryModel, fast_model
from clip_jax.weights.load import Loaded

# Sizes of which there are programs; larger ones are not faster for each query.
BATCHES = (1, 2, 4, 8)
LENGTHS = (8, 16, 32)  # of texts, in tokens, besides the whole context
MAX_PIXELS = 50_000_000  # of a picture that is searched for
REMEMBERED = 4096  # texts
MOST_WEIGHT = 100.0  # of a part of a query
# Texts that a model's vectors in bfloat16 are compared with, of the usual lengths; one for each of a batch.
TYPICAL = (
    "dog",
    "a red bicycle",
    "sunset over the sea",
    "two children playing football in a park",
    "a photo of a cat sleeping on a sofa",
    "an old black and white photograph of a street with trams",
    "close-up of a bee on a yellow flower",
    "mountains, lake, 1987",
)
# Random colors along a side of the pictures that they are compared with.
DETAIL = (1, 2, 3, 4, 6, 9, 14, 28)


class Part(NamedTuple):
    """One part of a query; the vector searched for is the sum of the parts' vectors times weights."""

    kind: Literal["text", "image", "pixels", "row"]
    value: Any  # a text; an encoded image file, or what `pixels` made of it; the number of a row
    weight: float = 1.0


def combine(parts: Sequence[Part], vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The vector of a query, (E,) of unit length, from those of its parts.

    Raises:
      ValueError: they cancel out, or there are none.
    """
    z_E = sum((part.weight * z for part, z in zip(parts, vectors)), np.zeros(()))
    if not np.linalg.norm(z_E) > 1e-6:
        raise ValueError("a query has no direction: give it a text, a picture or a row")
    return unit(np.asarray(z_E, np.float32))


class QueryEncoder:
    """Turns queries into vectors, with the model that the collection was embedded with.

    Args:
      loaded: the model.
      index: whose rows a query may name.
      dtype: of the model's matrix products, such as "bfloat16"; None: as the model has it; "auto":
        bfloat16 on a CPU with such products where this model's vectors are as good.

    Raises:
      ValueError: the model's embeddings have another width than the index.
    """

    def __init__(self, loaded: Loaded, index: SearchIndex, dtype: str | None = None):
        if (width := loaded.model.config.embed_dim) != index.vectors.dim:
            raise ValueError(
                f"the model embeds into {width} numbers, and the index has {index.vectors.dim}: name "
                "the model that the collection was embedded with"
            )
        self._loaded, self._index = loaded._replace(variables=None), index
        self._texts = functools.lru_cache(REMEMBERED)(self._tokens)
        # One device: a query is too small to be split.
        if dtype == "auto":
            self._model = fast_model(loaded.model, loaded.variables, self._typical())
        else:
            self._model = QueryModel(loaded.model, loaded.variables, dtype)

    @property
    def dtype(self) -> str:
        """What the factors of the model's products are."""
        return self._model.dtype

    def pixels(self, data: bytes) -> np.ndarray:
        """An encoded image file as the model takes it; see `eval_image` for what is refused."""
        preprocess = self._loaded.preprocess
        return eval_image(data, preprocess.config, preprocess.image_size, MAX_PIXELS)

    def __call__(self, queries: Sequence[Sequence[Part]]) -> np.ndarray:
        """(queries, E) float32 vectors of unit length.

        Raises:
          ImageError: a picture cannot be read.
          IndexError: there is no such row.
          ValueError: a query has no direction: its parts cancel out, or it has none.
        """
        vectors = iter(self.vectors([part for query in queries for part in query]))
        return np.stack([combine(query, [next(vectors) for _ in query]) for query in queries])

    def vectors(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """The vector of each part by itself, (E,) of unit length, in one batch of each kind."""
        found: dict[int, np.ndarray] = {}
        for kind in ("text", "image", "pixels", "row"):
            places = [place for place, part in enumerate(parts) if part.kind == kind]
            if places:
                values = [parts[place].value for place in places]
                found |= zip(places, getattr(self, f"_{kind}")(values))
        return [found[place] for place in range(len(parts))]

    def compile(self):
        """Make the programs of the usual queries, so that the first ones need not wait."""
        for count in BATCHES if self._loaded.tokenizer is not None else ():
            for length in LENGTHS:
                self._text(["a " * (length // 2)] * count)
        size = self._loaded.preprocess.image_size
        self._pixels([np.zeros((size, size, 3), np.uint8)])

    def _typical(self) -> dict[Literal["image", "text"], np.ndarray]:
        """Texts, and pictures of random colors, as the encoders take them."""
        size, rng = self._loaded.preprocess.image_size, np.random.default_rng(0)
        colors = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in DETAIL]
        smooth = [Image.fromarray(one).resize((size, size), Image.BICUBIC) for one in colors]
        inputs: dict[Literal["image", "text"], np.ndarray] = {"image": np.stack(smooth)}
        if self._loaded.tokenizer is not None:
            inputs["text"] = self._cut(np.stack([self._tokens(text) for text in TYPICAL]))
        return inputs

    def _cut(self, tokens_QL: np.ndarray) -> np.ndarray:
        """Without what no text needs, to one of few lengths."""
        length, whole = self._loaded.model.config.text.read_length(tokens_QL), tokens_QL.shape[1]
        length = min((one for one in (*LENGTHS, whole) if one >= length), default=whole)
        return tokens_QL[:, :length]

    def _row(self, rows: list[int]) -> np.ndarray:
        return unit(self._index.vectors.take(np.array(rows)))

    def _tokens(self, text: str) -> np.ndarray:
        if self._loaded.tokenizer is None:
            raise ValueError("no tokenizer lies with the model, so that texts cannot be searched")
        return np.asarray(self._loaded.tokenizer([text])[0], np.int32)

    def _text(self, texts: list[str]) -> np.ndarray:
        return self._embed("text", self._cut(np.stack([self._texts(text) for text in texts])))

    def _image(self, files: list[bytes]) -> np.ndarray:
        return self._pixels([self.pixels(data) for data in files])

    def _pixels(self, images: list[np.ndarray]) -> np.ndarray:
        return self._embed("image", np.stack(images))

    def _embed(self, kind: Literal["image", "text"], x_Q: np.ndarray) -> np.ndarray:
        """In batches of few sizes, as each is a program of its own."""
        found = []
        for first in range(0, len(x_Q), BATCHES[-1]):
            some = x_Q[first : first + BATCHES[-1]]
            size = min(size for size in BATCHES if size >= len(some))
            batch = np.zeros((size, *x_Q.shape[1:]), x_Q.dtype)
            batch[: len(some)] = some
            found.append(self._model.encode(kind, batch)[: len(some)])
        return np.concatenate(found)


def load_encoder(
    index: SearchIndex, model: str | os.PathLike | None = None, *, dtype: str | None = None
) -> QueryEncoder:
    """The encoder of an index's queries.

    Args:
      index: what is searched.
      model: a run directory or released weights; None: as the manifest of the embeddings says.
      dtype: see `QueryEncoder`.

    Raises:
      ValueError: the model is not that of the embeddings, or nothing says which it was.
    """
    manifest = index.embeddings.manifest or {}
    origin = manifest.get("origin", {})
    path = model or origin.get("model")
    if path is None:
        raise ValueError(
            f"{index.embeddings.root} does not say which model it was embedded with: give --model"
        )
    # Of a run, the step that it was embedded with, also where it has been trained since.
    same = path == origin.get("model")
    step = origin.get("step") if same else None
    loaded = load_to_host(path, origin.get("architecture") if same else None, step=step)
    expected = manifest.get("model_fingerprint")
    if expected is not None and model_fingerprint(loaded) != expected:
        raise ValueError(
            f"{path} is not the model that {index.embeddings.root} was embedded with: its parameters "
            "differ (a run that was trained since?). Give the right one with --model, and --step "
            "when embedding a run, or embed the collection again"
        )
    return QueryEncoder(loaded, index, dtype)


def parse_parts(texts: Sequence[str]) -> list[Part]:
    """Parts of a query from a command line: a text, the path of an image file or "row:5", each
    with a weight behind it if it ends in "=NUMBER".

    Raises:
      ValueError: a file that is named as an image is, and is not there or cannot be read; a text
        is empty; a weight is too large, or not finite.
    """
    return [_parse(text) for text in texts]


def _parse(text: str) -> Part:
    if os.path.isfile(text):  # whatever its name looks like
        value, equals, weight = text, "", ""
    else:
        value, equals, weight = text.rpartition("=")
    try:
        value, number = (value, float(weight)) if equals else (text, 1.0)
    except ValueError:
        value, number = text, 1.0
    if not abs(number) <= MOST_WEIGHT:  # nor if it is no number
        raise ValueError(f"{text!r}: a weight is from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}")
    if value.startswith("row:") and value[4:].isdecimal():
        return Part("row", int(value[4:]), number)
    if re.fullmatch(r"row:\s*[-+\d.]*", value):
        raise ValueError(f"{text!r}: a row is a whole number from 0 on, such as row:5")
    if os.path.isfile(value):
        with open(value, "rb") as file:
            data = file.read()
        try:
            decode(data, max_pixels=MAX_PIXELS)
        except ImageError as error:
            raise ValueError(f"{value} cannot be read as a picture: {error}") from error
        return Part("image", data, number)
    if is_image(value) and " " not in value:
        raise ValueError(f"there is no image file {value}; a text that ends so needs a space in it")
    if not value.strip():
        raise ValueError(f"{text!r} is no query: give it a text, a picture or a row")
    return Part("text", value, number)

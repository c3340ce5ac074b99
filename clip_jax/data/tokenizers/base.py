"""What all tokenizers share: rows of ids with an end token, and how long texts are cut."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from etils import epath

from clip_jax.storage import atomic_write

TextMask = Literal["truncate", "random", "block"]
DESCRIPTION = "description.json"


class TokenError(ValueError):
    """A text with an id that no row of the token embedding is for, of which a model would read another."""

    reason = "token-outside-vocabulary"

    def __init__(self, text: str, ids: list[int], tokenizer: "Tokenizer"):
        found = next(i for i in ids if not 0 <= i < tokenizer.embedded)
        super().__init__(
            f"{tokenizer} gives {text[:40]!r} the id {found}, and the model has "
            f"token embeddings for 0 to {tokenizer.embedded - 1}: leave the text out, or give the tokenizer the "
            "vocab_size that its ids have"
        )


class Tokenizer(ABC):
    """Turns texts into rows of ids: a start token where the kind has one, the text, an end token.

    Attributes:
      context_length: ids in a row; a text that is longer loses tokens, never the end token.
      vocab_size: ids are below it.
      end_id: closes every row. Except for SigLIP's it is the largest id, so a model finds it.
      pad_id: fills the row after the end token.
      rows: of the token embedding of its model, where that may have fewer than `vocab_size`: released
        weights have none for tokens that are reserved, and a text can spell these all the same.
    """

    kind: str
    context_length: int
    vocab_size: int
    end_id: int
    pad_id: int = 0
    rows: int | None = None
    start_ids: tuple[int, ...] = ()

    def __call__(
        self,
        texts: Sequence[str],
        rng: np.random.Generator | None = None,
        mask: TextMask = "truncate",
    ) -> np.ndarray:
        """Tokenize.

        Args:
          texts: a sequence of strings, not one string.
          rng: what `mask` draws from; None: the texts are truncated.
          mask: which tokens of a text that is too long are kept (arXiv:2305.07017, section 3):
            the first ones, a random subset in order, or a random block.

        Returns:
          (texts, context_length) int32.

        Raises:
          ValueError: what is given is no list of texts.
          TokenError: a token of a text has no place in the model's table.
        """
        if isinstance(texts, str):
            raise ValueError(f"a tokenizer takes a list of texts, not one text: [{texts[:40]!r}]")
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int64)
        room = self.context_length - len(self.start_ids) - 1
        keep = MASKS[mask if rng is not None else "truncate"]
        whole = [_text(text, number) for number, text in enumerate(texts)]
        encoded = self.encode(whole)
        if len(encoded) != len(whole):
            raise ValueError(f"{self} gives {len(encoded)} rows of ids for {len(whole)} texts")
        for text, row, ids in zip(whole, rows, encoded):
            if len(ids) > room:
                ids = keep(ids, room, rng)
            ids = np.array([*self.start_ids, *ids, self.end_id])
            if ids.dtype.kind not in "iu":
                raise ValueError(f"{self} gives {text[:40]!r} ids of {ids.dtype}, no whole numbers")
            row[: len(ids)] = ids
        outside_M = np.flatnonzero(((rows < 0) | (rows >= self.embedded)).any(axis=1))
        if outside_M.size:
            first = int(outside_M[0])
            raise TokenError(whole[first], rows[first].tolist(), self)
        return rows.astype(np.int32)

    def __str__(self) -> str:
        return f"the tokenizer of kind {self.kind}"

    @property
    def embedded(self) -> int:
        """Ids that may be in a row: below `vocab_size`, and in the table of the model."""
        return min(self.vocab_size, self.rows or self.vocab_size)

    @property
    def ends_at_largest_id(self) -> bool:
        """Whether a model that reads a text at its largest id finds its end."""
        return self.end_id == self.vocab_size - 1

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """The ids of each text, of any length, without start and end token."""

    def save(self, directory: str | os.PathLike):
        """Write all that `load_tokenizer` needs into `directory`, of a disk or a bucket."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        name, content = self.file()
        if name is not None:
            atomic_write(directory / name, content)
        description = {"kind": self.kind, "context_length": self.context_length, "file": name}
        atomic_write(directory / DESCRIPTION, json.dumps(description, indent=2) + "\n")

    def file(self) -> tuple[str | None, bytes]:
        """The name and content of the file that the tokenizer was made from, if there is one."""
        return None, b""

    def _check_context(self):
        least = len(self.start_ids) + 2
        if self.context_length < least:
            raise ValueError(
                f"context_length={self.context_length} leaves no token for the text; "
                f"the {self.kind} tokenizer needs at least {least}"
            )


def _text(text: object, number: int) -> str:
    """A text without halves of surrogate pairs, at which some kinds of tokenizers fail."""
    if not isinstance(text, str):
        raise ValueError(f"text {number} is {type(text).__name__}, and a tokenizer takes strings")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="ignore").decode()
    return text


class TokenizerFormat(NamedTuple):
    """How tokenizers of one kind are made: the record that the table of kinds names."""

    tokenizer: Callable[
        ..., Tokenizer
    ]  # (content of its file, context_length), or (context_length)
    file: str | None = None  # what tokenizer.path names, for messages; None: it reads no file
    train: Callable[[Iterable[str], int, int], Tokenizer] | None = (
        None  # of captions, vocab_size and context_length, where no file is given
    )


def _truncate(ids: Sequence[int], room: int, rng: np.random.Generator | None) -> Sequence[int]:
    return ids[:room]


def _random(ids: Sequence[int], room: int, rng: np.random.Generator) -> Sequence[int]:
    kept = np.sort(rng.choice(len(ids), room, replace=False))
    return [ids[i] for i in kept]


def _block(ids: Sequence[int], room: int, rng: np.random.Generator) -> Sequence[int]:
    first = int(rng.integers(len(ids) - room + 1))
    return ids[first : first + room]


MASKS = {"truncate": _truncate, "random": _random, "block": _block}

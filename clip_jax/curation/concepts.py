"""Caps the samples of frequent concepts, as MetaCLIP balances its data (arXiv:2309.16671, algorithm 1).

A caption matches an entry of the list if the entry's words stand in it, one after the other. An entry
with more than `limit` captions gives each of them the chance limit / count, any other 1. A sample is kept
if one of its entries draws it, so that rare entries keep theirs whole, and captions without an entry are
dropped. The draw is a hash of the seed, the sample's key and the entry: the same sample with the same
counts is always decided alike.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import xxhash

from clip_jax import storage
from clip_jax.data.shuffle import hash64

WORD = re.compile(r"\w+|[^\w\s]")  # a mark is a word of its own: "t-shirt" is not "shirt"


class Matches(NamedTuple):
    """Which entries each caption has, as a list of pairs."""

    row_M: np.ndarray  # int64, rising
    entry_M: np.ndarray  # int32, rising for each row


class Entries:
    """A list of concepts, looked up by their words.

    Raises:
      ValueError: an entry has no words, or there is none.
    """

    def __init__(self, entries: Iterable[str], *, name: str = "the list of concepts"):
        self.names: list[str] = []
        self._number: dict[str, int] = {}
        for entry in entries:
            words = " ".join(_words(entry))
            if not words:
                raise ValueError(f"{name} has an entry without words: {entry!r}")
            if words not in self._number:  # entries that differ in case or space alone are one
                self._number[words] = len(self.names)
                self.names.append(entry)
        if not self.names:
            raise ValueError(f"{name} has no entries; write one a line")
        self._longest = max(words.count(" ") for words in self._number) + 1

    def __len__(self) -> int:
        return len(self.names)

    def hashes(self) -> np.ndarray:
        """(entries,) uint64, of their words, wherever they stand in the list."""
        return np.array(
            [xxhash.xxh3_64_intdigest(words.encode()) for words in self._number], np.uint64
        )

    def match(self, caption: str) -> list[int]:
        """The numbers of the entries in a caption, rising."""
        words, found = _words(caption), set()
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                number = self._number.get(" ".join(words[start:end]))
                if number is not None:
                    found.add(number)
        return sorted(found)

    def match_all(self, captions: Iterable[str], rows: Iterable[int]) -> Matches:
        """The entries of some rows' captions."""
        pairs = [(row, entry) for row, text in zip(rows, captions) for entry in self.match(text)]
        row_M, entry_M = np.array(pairs, np.int64).reshape(-1, 2).T
        return Matches(row_M, entry_M.astype(np.int32))


class Balance(NamedTuple):
    """What balancing leaves."""

    keeps_N: np.ndarray  # bool, of all rows
    count_S: np.ndarray  # captions with each entry before
    kept_S: np.ndarray  # and after


def hash_keys(keys: Iterable[str]) -> np.ndarray:
    """(keys,) uint64."""
    return np.fromiter((xxhash.xxh3_64_intdigest(key.encode()) for key in keys), np.uint64)


def read_entries(path: str) -> Entries:
    """The entries of a text file, one a line; empty lines are skipped."""
    try:
        text = storage.read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    return Entries((line.strip() for line in text.splitlines() if line.strip()), name=path)


def balance(
    matches: Matches, entries: Entries, key_N: np.ndarray, *, limit: int, seed: int
) -> Balance:
    """Draw the samples that are kept.

    Args:
      matches: of the rows that take part; a row without one is dropped.
      entries: the list.
      key_N: uint64, the hashed keys of all rows (`hash_keys`), which `matches` numbers.
      limit: captions of an entry that are kept in the mean, at most.
      seed: of the draws.
    """
    count_S = np.bincount(matches.entry_M, minlength=len(entries))
    chance_S = np.minimum(1.0, limit / np.maximum(count_S, 1))
    draw_M = hash64(seed, key_N[matches.row_M], entries.hashes()[matches.entry_M])
    # 53 bits are a float64's: a draw is below 1, so that a chance of 1 always keeps.
    keeps_M = (draw_M >> np.uint64(11)) / 2.0**53 < chance_S[matches.entry_M]
    keeps_N = np.zeros(len(key_N), bool)
    keeps_N[matches.row_M[keeps_M]] = True
    kept_S = np.bincount(matches.entry_M[keeps_N[matches.row_M]], minlength=len(entries))
    return Balance(keeps_N, count_S, kept_S)


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())

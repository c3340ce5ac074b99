"""Rows of the same image as one sample: their order by hash, in files that all processes map."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from clip_jax import storage

VERSION = 2  # of what is kept in the cache


class RowsOfSamples:
    """Which rows of a table each sample has; pickled by the folder of its arrays."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._order_N = np.load(folder / "order.npy", mmap_mode="r")
        self._first_S = np.load(folder / "first.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._first_S) - 1

    def __getitem__(self, index: int) -> list[int]:
        return self._order_N[int(self._first_S[index]) : int(self._first_S[index + 1])].tolist()

    def __reduce__(self):
        return RowsOfSamples, (self._folder,)


def open_groups(key: str, hashes: Callable[[], np.ndarray], cache: Path) -> RowsOfSamples | None:
    """The rows of each sample, by the cache folder or by their hashes; None: each row is a sample.

    `key` says what the hashes are made of. See `group`.
    """
    folder = _folder(key, cache)
    with storage.exclusive(cache / "rows" / f"{folder.name}.lock"):
        if not folder.is_dir():
            order_N, first_S = group(hashes())
            partial = folder.with_suffix(f".{os.getpid()}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            if first_S is not None:
                np.save(partial / "order.npy", order_N)
                np.save(partial / "first.npy", first_S)
            partial.replace(folder)
    return RowsOfSamples(folder) if (folder / "first.npy").is_file() else None


def is_grouped(key: str, cache: Path) -> bool:
    """Whether `open_groups` has been called with this key before."""
    return _folder(key, cache).is_dir()


def repeats(hash_N: np.ndarray) -> bool:
    """Whether rows share an image."""
    hash_N = hash_N[hash_N != 0]
    return len(np.unique(hash_N)) < len(hash_N)


def _folder(key: str, cache: Path) -> Path:
    return cache / "rows" / xxhash.xxh3_64_hexdigest(f"{VERSION} {key}".encode())


def group(hash_N: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows in the order of samples, and the place of each sample's first row; None: one a sample.

    Samples come in the order of their first rows, and the rows of one in the order of the list. A
    hash of 0 is of no image, so that such a row is a sample by itself.
    """
    order_N = np.argsort(hash_N, kind="stable")
    sorted_N = hash_N[order_N]
    new_N = np.ones(len(hash_N), bool)
    new_N[1:] = (sorted_N[1:] != sorted_N[:-1]) | (sorted_N[1:] == 0)
    if new_N.all():
        return order_N, None
    begin_S = np.flatnonzero(new_N)
    count_S = np.diff(np.append(begin_S, len(hash_N)))
    by_first_S = np.argsort(order_N[begin_S], kind="stable")
    begin_S, count_S = begin_S[by_first_S], count_S[by_first_S]
    first_S = np.concatenate([[0], np.cumsum(count_S)])
    within_N = np.arange(len(hash_N)) - np.repeat(first_S[:-1], count_S)
    return order_N[np.repeat(begin_S, count_S) + within_N], first_S

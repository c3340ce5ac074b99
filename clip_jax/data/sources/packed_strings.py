"""Many strings in one block of memory, which processes can share as a file."""

import mmap
import os
from array import array
from pathlib import Path

import numpy as np
import xxhash

from clip_jax.storage import atomic_write


class PackedStrings:
    """A list of strings; one of as many `str` takes several times the memory."""

    def __init__(self):
        self._block, self._ends = bytearray(), array("q", [0])
        self._path: str | None = None  # of a file that holds both

    def append(self, string: str):
        self._block += string.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = int(self._ends[index]), int(self._ends[index + 1])
        return bytes(self._block[start:end]).decode("utf-8", "surrogatepass")

    def share(self, cache: Path):
        """Map them from a file in the cache folder, so that a copy in another process costs nothing."""
        if not len(self):
            return
        ends = self._ends.tobytes()
        path = cache / "strings" / xxhash.xxh3_128_hexdigest(bytes(self._block) + ends)
        if not path.is_file() or path.stat().st_size != len(ends) + len(self._block):
            atomic_write(path, ends + bytes(self._block))
        self._map(os.fspath(path), len(self))

    def _map(self, path: str, count: int):
        self._path = path
        self._ends = np.memmap(path, np.int64, mode="r", shape=(count + 1,))
        with open(path, "rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._block = memoryview(whole)[self._ends.nbytes :]

    def __reduce__(self):
        if self._path is None:
            return _copy, (bytes(self._block), self._ends)
        return _mapped, (self._path, len(self))


def _copy(block: bytes, ends: array) -> PackedStrings:
    strings = PackedStrings()
    strings._block, strings._ends = bytearray(block), ends
    return strings


def _mapped(path: str, count: int) -> PackedStrings:
    strings = PackedStrings()
    strings._map(path, count)
    return strings

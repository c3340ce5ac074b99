"""Blocks that were read from far away, kept in a folder of a limited size."""

import contextlib
import os
import threading
from pathlib import Path
from typing import NamedTuple

import xxhash
from absl import logging

from clip_jax import storage

SUFFIX = ".block"
DIGEST = 8  # bytes at the end of a file
STEP = 0.05  # of the limit that is written until the folder is looked at again
FULL = 0.8  # of the limit from which on files are removed, as other processes write meanwhile


class Span(NamedTuple):
    """The bytes in which a run of samples lies."""

    path: str
    start: int
    end: int
    info: storage.FileInfo  # of the whole file


class BlockCache:
    """Files of a folder, which several processes may share; the ones that were used last stay.

    A file that is damaged, or of another version of a shard, is not found. A disk that is full
    costs the cache and nothing else.
    """

    def __init__(self, folder: Path, limit: int):
        self._folder, self._limit = folder, limit
        self._lock, self._left = threading.Lock(), 0  # bytes until it is looked at
        self._broken = False

    def get(self, span: Span) -> bytes | None:
        """The bytes of a span, or None."""
        path = self._path(span)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        data, digest = content[:-DIGEST], content[-DIGEST:]
        if len(data) == span.end - span.start and xxhash.xxh3_64_digest(data) == digest:
            return data
        path.unlink(missing_ok=True)
        return None

    def put(self, span: Span, data: bytes | bytearray):
        """Keep the bytes of a span; what was not used for longest makes room."""
        if self._broken or len(data) > self._limit:
            return
        path = self._path(span)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data))
            with partial.open("wb") as file:
                file.write(data)
                file.write(xxhash.xxh3_64_digest(data))
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            self._broken = True
            logging.warning("Blocks are not kept in %s any more: %s", self._folder, error)

    def _make_room(self, size: int):
        with self._lock:
            self._left -= size
            if self._left < 0:  # other processes write here too
                self._left = int(STEP * self._limit)
                self._evict(size + self._left)

    def _evict(self, size: int):
        """Remove what was not used for longest, until there is room for so many bytes."""
        found = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError):
                if entry.name.endswith((SUFFIX, ".partial")):
                    info = entry.stat()
                    found.append((info.st_mtime_ns, info.st_size, entry.path))
        total = sum(kept for _, kept, _ in found)
        for _, kept, path in sorted(found):
            if total + size <= FULL * self._limit:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= kept

    def _path(self, span: Span) -> Path:
        what = repr((span.path, tuple(span.info), span.start, span.end)).encode()
        return self._folder / f"{xxhash.xxh3_128_hexdigest(what)}{SUFFIX}"

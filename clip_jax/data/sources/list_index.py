"""Where each row of a list starts, and which rows share an image: arrays mapped from a cache folder.

A list of 10 million rows is looked through once, mostly by numpy; afterwards every process maps the
same file, and a row is parsed when it is asked for.
"""

import json
import mmap
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from clip_jax import storage
from clip_jax.data.sources.grouping import group
from clip_jax.data.sources.list_format import ListFormat
from clip_jax.data.sources.list_scan import Found, Wanted, scan

SAID_FROM = 1 << 30  # bytes of a list whose reading takes a while
VERSION = 3  # of what is kept in the cache


class ListIndex:
    """The rows of the list in the file `path`, by the arrays in `folder`; pickled by its paths."""

    def __init__(self, path: str, folder: Path):
        self._path, self._folder = path, folder
        self.info = json.loads((folder / "info.json").read_text())
        info = os.stat(path)
        if [info.st_size, info.st_mtime_ns] != self.info["file"]:
            raise ValueError(f"{path} has changed while it was in use; start again")
        self._starts_N = np.load(folder / "starts.npy", mmap_mode="r")
        grouped = self.info["grouped"]
        self._first_S = np.load(folder / "first.npy", mmap_mode="r") if grouped else None
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        """Samples: images with all of their rows."""
        return len(self._starts_N) if self._first_S is None else len(self._first_S) - 1

    def rows(self, index: int) -> list[Iterator[bytes]]:
        """The lines from the start of each row of a sample on."""
        first, end = index, index + 1
        if self._first_S is not None:
            first, end = int(self._first_S[index]), int(self._first_S[index + 1])
        return [self._lines(int(start)) for start in self._starts_N[first:end]]

    def _lines(self, start: int) -> Iterator[bytes]:
        while start < len(self._data):
            end = self._data.find(b"\n", start) + 1 or len(self._data)
            yield self._data[start:end]
            start = end

    def __reduce__(self):
        return ListIndex, (self._path, self._folder)


def content_digest(path: str, cache: Path) -> str:
    """A hash of all bytes of a list; it is kept, since a list of 60 GB takes a minute to read."""
    info = os.stat(path)
    state = f"{os.path.realpath(path)} {info.st_size} {info.st_mtime_ns} {info.st_ino}"
    name = xxhash.xxh3_64_hexdigest(state.encode("utf-8", "surrogateescape"))
    kept = cache / "lists" / f"{name}.digest"
    if kept.is_file() and (known := kept.read_text()):
        return known
    if info.st_size > SAID_FROM:
        size = f"{info.st_size / 1e9:.1f} GB"
        print(f"Looking through {path} ({size}) once ...", file=sys.stderr, flush=True)
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    storage.atomic_write(kept, digest.hexdigest())
    return digest.hexdigest()


def open_index(
    path: str, digest: str, format: ListFormat, wanted: Wanted, cache: Path
) -> ListIndex:
    """The index of the list in the file `path`, made now unless the cache folder has it.

    Raises:
      ValueError: a row is not as the format has it, or its caption is an object; with the line.
    """
    made_by = xxhash.xxh3_64_hexdigest(repr((VERSION, digest, format, wanted)).encode())
    folder = cache / "lists" / made_by
    info = os.stat(path)
    state = [info.st_size, info.st_mtime_ns]
    with storage.exclusive(cache / "lists" / f"{made_by}.lock"):
        known = folder / "info.json"
        if not known.is_file() or json.loads(known.read_text())["file"] != state:
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, scan(path, format, wanted), wanted, state)
    return ListIndex(path, folder)


def _write(folder: Path, found: Found, wanted: Wanted, state: list[int]):
    starts_N = np.concatenate([np.empty(0, np.uint64), *found.starts])
    first_S = None
    if wanted.group:
        order_N, first_S = group(np.concatenate([np.empty(0, np.uint64), *found.hashes]))
        starts_N = starts_N if first_S is None else starts_N[order_N]
    partial = folder.with_suffix(f".{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.save(partial / "starts.npy", starts_N)
    if first_S is not None:
        np.save(partial / "first.npy", first_S)
    info = {
        "file": state,
        "rows": found.rows,
        "grouped": first_S is not None,
        "labels": sorted(found.labels),
        "short": found.short,
        "first_short": found.first_short,
    }
    (partial / "info.json").write_text(json.dumps(info))
    partial.replace(folder)


def local_copy(path: str, data: bytes, suffix: str, cache: Path) -> str:
    """A list that does not lie on this disk in UTF-8, written into the cache folder."""
    copy = cache / "lists" / f"{xxhash.xxh3_64_hexdigest(data)}{suffix}"
    if not copy.is_file() or copy.stat().st_size != len(data):
        storage.atomic_write(copy, data)
    return os.fspath(copy)


def cache_folder(data_dir: str) -> Path:
    """`data.data_dir`, or where it cannot be written, the user's cache folder."""
    folder = Path(data_dir).expanduser()
    try:
        (folder / "lists").mkdir(parents=True, exist_ok=True)
    except OSError:
        return storage.user_cache()
    return folder if storage.writable(folder / "lists") else storage.user_cache()

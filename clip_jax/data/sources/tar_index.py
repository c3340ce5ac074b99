"""Where each sample of a set of tar shards starts: four bytes a sample, mapped into memory.

The file holds one uint32 a sample, the 512-byte block of its shard at which it starts, and after
them a JSON footer about the shards. The rest is read from the tar's own headers with the sample.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_jax import storage
from clip_jax.data.block_order import Blocks, block_bytes
from clip_jax.data.sources import tar_parts
from clip_jax.data.sources.tar_members import BLOCK
from clip_jax.data.sources.tar_scan import Shard, merged, scan_all, scan_here
from clip_jax.storage import ranges

MAGIC = b"cjtarix2"
THREADS = 32  # parts of the index of a bucket that are scanned at once
OLD_MAGIC = b"cjtarix1"  # of an index that does not say what is wrong with a shard


class _Old(ValueError):
    """An index that an earlier version wrote."""


@dataclass(frozen=True)
class TarIndex:
    """The index of `paths`, which has been opened from the file `path`."""

    path: Path
    paths: tuple[str, ...]
    shards: tuple[Shard, ...]
    first_S: np.ndarray  # number of the first sample of each shard, and of all samples
    starts_N: np.ndarray  # uint32 blocks, mapped

    def __len__(self) -> int:
        return int(self.first_S[-1])

    whole = False  # samples are read alone

    def span(self, start: int, end: int) -> tuple[int, int, int]:
        """Shard of a run of samples, and the bytes of it between which they lie."""
        shard, first, _ = self.locate(start)
        return shard, first, self.locate(end - 1)[2]

    def borders(self, start: int, end: int, data: bytes | bytearray) -> np.ndarray:
        """The byte of the span's `data` at which each sample begins, and at which the last one ends."""
        starts = self.starts_N[start:end].astype(np.int64) * BLOCK
        return np.append(starts - starts[0], len(data))

    def locate(self, number: int) -> tuple[int, int, int]:
        """Shard of a sample, and the bytes of it between which the sample lies."""
        shard = int(np.searchsorted(self.first_S, number, side="right")) - 1
        start = int(self.starts_N[number])
        last = number + 1 == self.first_S[shard + 1]
        end = self.shards[shard].end if last else int(self.starts_N[number + 1])
        return shard, start * BLOCK, end * BLOCK

    def blocks(self) -> Blocks:
        """Runs of neighbouring samples of one shard, of about the same bytes."""
        size = sum(shard.end * BLOCK for shard in self.shards if shard.samples)
        most = block_bytes(size, len(self)) // BLOCK
        first, parts = 0, []
        for shard in self.shards:
            starts = self.starts_N[first : first + shard.samples]
            pieces = max(1, round(shard.end / most))
            borders = np.arange(pieces, dtype=np.uint32) * (shard.end // pieces)
            parts.append(first + np.searchsorted(starts, borders))
            first += shard.samples
        first_K = np.concatenate([*parts, [first]]).astype(np.int64)
        first_K = first_K[np.diff(first_K, append=first + 1) > 0]
        return Blocks(first_K, size / (len(first_K) - 1))

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self):_} samples in {len(self.shards):_} shards"]
        for path, shard in zip(self.paths, self.shards):
            if shard.problem:
                lines.append(f"{path} {shard.problem}")
            elif shard.damage:
                lines.append(f"damaged at byte {shard.damage[0]}: {path}")
            for what, found in (("images", shard.images), ("captions", shard.captions)):
                if found < shard.samples:
                    lines.append(f"{shard.samples - found} samples without {what}: {path}")
        return "\n".join(lines)

    def __reduce__(self):
        return _load, (self.path, self.paths)

    @property
    def fingerprint(self) -> str:
        """Of the shards' sizes and sample counts."""
        parts = [(os.path.basename(s.name), s.size, s.samples) for s in self.shards]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def places(paths: Sequence[str], cache: Path) -> list[Path]:
    """Where the index of these shards may lie on this host: beside them, or in the cache folder."""
    whole = hashlib.sha256(json.dumps(list(paths)).encode()).hexdigest()[:12]
    found = [cache.expanduser() / "indexes" / f"{whole}.tarindex"]
    if not storage.is_url(paths[0]):
        found.insert(0, Path(_beside(paths)))
    return found


def _beside(paths: Sequence[str]) -> str:
    """The place of the index beside the shards."""
    # By where they lie from the first one on, so that the folder can be moved.
    first = os.path.dirname(paths[0])
    if storage.is_url(first):
        names = [path.removeprefix(f"{first}/") for path in paths]
    else:
        names = [os.path.relpath(path, first or ".") for path in paths]
    # Versions of files behind a URL are others than those of the same files on a disk.
    kind = ["url"] * storage.is_url(paths[0])
    digest = hashlib.sha256(json.dumps([*names, len(names), *kind]).encode()).hexdigest()[:12]
    return os.path.join(first, f".clip_jax_{digest}.tarindex")


def find_index(paths: Sequence[str], cache: Path) -> Path | None:
    """An index that is there; one beside shards behind a URL is fetched."""
    found = next((path for path in places(paths, cache) if path.exists()), None)
    return found or (_fetch(paths, cache) if storage.is_url(paths[0]) else None)


def _fetch(paths: Sequence[str], cache: Path) -> Path | None:
    url, path = _beside(paths), places(paths, cache)[-1]
    if not storage.is_file(url):
        return None
    storage.atomic_write(path, storage.read_whole(url))
    return path


def open_index(paths: Sequence[str], cache: Path) -> TarIndex:
    """The index of these shards, which is built if there is none.

    Raises:
      ValueError: shards have changed since it was built, so that the order would be another.
    """
    if find_index(paths, cache) is None:
        return build_index(paths, cache)
    infos, problems = _infos(paths), []
    for place in [path for path in places(paths, cache) if path.exists()]:
        try:
            index = _load(place, tuple(paths))
            _check_fresh(index, infos)
            return index
        except _Old:
            continue
        except ValueError as error:
            problems.append(error)
    if not problems:
        return build_index(paths, cache, again=True)
    raise problems[0]


def _infos(paths: Sequence[str]) -> list[storage.FileInfo]:
    """Of a web server, which cannot list, the first one alone: others are compared when they are read."""
    return storage.stat(paths[:1] if storage.is_web(paths[0]) else paths)


def build_index(
    paths: Sequence[str], cache: Path, *, workers: int | None = None, again: bool = False
) -> TarIndex:
    """Read the headers of all shards, in parallel, and keep what was found.

    With `again`, what is there is replaced; shards that have not changed are not read again. Behind
    a URL all hosts of a job do it together, and the index is kept there for others if it can be.
    """
    beside, *rest = found = places(paths, cache)
    path = beside if not rest or storage.writable(beside.parent) else rest[0]
    remote = storage.is_url(paths[0])
    with storage.exclusive(path.with_suffix(".lock")):
        if path.exists() and not again:
            with contextlib.suppress(_Old):
                return _load(path, tuple(paths))
        if remote and again:
            _fetch(paths, cache)
        known = {pair: old for place in found for pair, old in _known(place, tuple(paths)).items()}
        infos = storage.stat(paths)
        cost = sum(info.size for name, info in zip(paths, infos) if (name, info) not in known)
        said = f" ({cost / 1e9:.1f} GB are read; sizes.json beside them spares that)" * remote
        print(
            f"Indexing {len(paths)} tar shards{said} into {path} ...", file=sys.stderr, flush=True
        )
        if not remote:
            _write(path, scan_all(paths, infos, known, workers))
        elif not tar_parts.can_write(os.path.dirname(paths[0])):
            folder = str(path.with_suffix(".parts"))
            _write(path, _scan_parts(paths, infos, known, workers, folder, (0, 1)))
            tar_parts.forget(folder)
        else:
            url = _beside(paths)
            folder, host = url.removesuffix(".tarindex") + ".parts", tar_parts.hosts()
            try:
                _write(path, _scan_parts(paths, infos, known, workers, folder, host))
            except FileNotFoundError:  # the first host has put them together and removed them
                if _fetch(paths, cache) is None:
                    raise
            if host[0] == 0:
                tar_parts.put(url, path.read_bytes())
                tar_parts.forget(folder)
    return _load(path, tuple(paths))


def _scan_parts(paths, infos, known, workers, folder, host) -> Iterator[tuple[Shard, np.ndarray]]:
    todo = [pair for pair in zip(paths, infos) if pair not in known]
    threads = workers or THREADS
    found = tar_parts.scan_together(todo, folder, scan_here, threads=threads, host=host)
    return merged(paths, infos, known, found)


def _write(path: Path, found: Iterable[tuple[Shard, np.ndarray]]):
    partial, shards = path.with_suffix(f".{os.getpid()}.partial"), []
    with partial.open("wb") as file:
        for shard, starts in found:
            shards.append(shard)
            file.write(starts.tobytes())
        footer = json.dumps({"shards": shards}).encode()
        file.write(footer + len(footer).to_bytes(8, "little") + MAGIC)
    partial.replace(path)


def _known(path: Path, paths: tuple[str, ...]) -> dict:
    """What an older index says of shards, by path and FileInfo."""
    try:
        old = _load(path, paths)
    except (OSError, ValueError):
        return {}
    known = {}
    for name, shard, first in zip(paths, old.shards, old.first_S):
        starts = np.array(old.starts_N[first : first + shard.samples])
        known[name, storage.FileInfo(shard.size, shard.version)] = (shard, starts)
    return known


def _load(path: Path, paths: tuple[str, ...]) -> TarIndex:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 16))
        tail = file.read(16)
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] == OLD_MAGIC:
            raise _Old(f"{path} was written by an earlier version")
        if tail[8:] != MAGIC or length > size - 16:
            raise ValueError(f"{path} is not a whole index; delete it, and it is built again")
        file.seek(size - 16 - length)
        footer = json.loads(file.read(length))
    shards = tuple(Shard(*entry[:-1], tuple(entry[-1])) for entry in footer["shards"])
    first_S = np.cumsum([0, *(shard.samples for shard in shards)])
    if len(shards) != len(paths) or first_S[-1] * 4 != size - 16 - length:
        raise ValueError(f"{path} is of other shards; delete it, and it is built again")
    starts_N = np.empty(0, np.uint32)
    if first_S[-1]:
        starts_N = np.memmap(path, np.uint32, mode="r", shape=(int(first_S[-1]),))
    return TarIndex(path, paths, shards, first_S, starts_N)


def _check_fresh(index: TarIndex, infos: Sequence[storage.FileInfo]):
    stale = [
        path
        for path, shard, info in zip(index.paths, index.shards, infos)
        if not ranges.is_same(storage.FileInfo(shard.size, shard.version), info)
    ]
    if stale:
        raise ValueError(
            f"the index {index.path} is stale: {len(stale)} of {len(index.paths)} shards have "
            f"changed since it was made ({', '.join(stale[:3])}{', ...' if len(stale) > 3 else ''}). "
            "Bring it up to date with `clip-jax data index SOURCE`"
        )

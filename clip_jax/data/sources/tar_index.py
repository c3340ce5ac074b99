"""Where each sample of a set of tar shards starts: four bytes a sample, mapped into memory.

The file holds one uint32 a sample, the 512-byte block of its shard at which it starts, and after
them a JSON footer about the shards. The rest is read from the tar's own headers with the sample.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_jax import storage
from clip_jax.data.block_order import Blocks, block_bytes
from clip_jax.data.sources.tar_members import BLOCK
from clip_jax.data.sources.tar_scan import Shard, scan_all

MAGIC = b"cjtarix2"
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
    """Where the index of these shards may lie: beside them, or in the cache folder."""
    # By where they lie from the first one on, so that the folder can be moved.
    first = os.path.dirname(paths[0])
    names = [
        path if storage.is_url(path) else os.path.relpath(path, first or ".") for path in paths
    ]
    digest = hashlib.sha256(json.dumps([*names, len(names)]).encode()).hexdigest()[:12]
    whole = hashlib.sha256(json.dumps(list(paths)).encode()).hexdigest()[:12]
    found = [cache.expanduser() / "indexes" / f"{whole}.tarindex"]
    if not storage.is_url(paths[0]):
        found.insert(0, Path(paths[0]).parent / f".clip_jax_{digest}.tarindex")
    return found


def open_index(paths: Sequence[str], cache: Path) -> TarIndex:
    """The index of these shards, which is built if there is none.

    Raises:
      ValueError: shards have changed since it was built, so that the order would be another.
    """
    found = [path for path in places(paths, cache) if path.exists()]
    if not found:
        return build_index(paths, cache)
    infos, problems = storage.stat(paths), []
    for path in found:
        try:
            index = _load(path, tuple(paths))
            _check_fresh(index, infos)
            return index
        except _Old:
            continue
        except ValueError as error:
            problems.append(error)
    if not problems:
        return build_index(paths, cache, again=True)
    raise problems[0]


def build_index(
    paths: Sequence[str], cache: Path, *, workers: int | None = None, again: bool = False
) -> TarIndex:
    """Read the headers of all shards, in parallel, and keep what was found.

    With `again`, what is there is replaced; shards that have not changed are not read again.
    """
    beside, *rest = found = places(paths, cache)
    path = beside if not rest or storage.writable(beside.parent) else rest[0]
    with storage.exclusive(path.with_suffix(".lock")):
        if path.exists() and not again:
            with contextlib.suppress(_Old):
                return _load(path, tuple(paths))
        known = {pair: old for place in found for pair, old in _known(place, tuple(paths)).items()}
        infos = storage.stat(paths)
        print(f"Indexing {len(paths)} tar shards into {path} ...", file=sys.stderr, flush=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        shards = []
        with partial.open("wb") as file:
            for shard, starts in scan_all(paths, infos, known, workers):
                shards.append(shard)
                file.write(starts.tobytes())
            footer = json.dumps({"shards": shards}).encode()
            file.write(footer + len(footer).to_bytes(8, "little") + MAGIC)
        partial.replace(path)
    return _load(path, tuple(paths))


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
        if (shard.size, shard.version) != tuple(info)
    ]
    if stale:
        raise ValueError(
            f"the index {index.path} is stale: {len(stale)} of {len(index.paths)} shards have "
            f"changed since it was made ({', '.join(stale[:3])}{', ...' if len(stale) > 3 else ''}). "
            "Bring it up to date with `clip-jax data index SOURCE`"
        )

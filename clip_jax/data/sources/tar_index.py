"""Where each sample of a set of tar shards starts: four bytes a sample, mapped into memory.

The file holds one uint32 a sample, the 512-byte block of its shard at which it starts, and after
them a JSON footer about the shards. The rest is read from the tar's own headers with the sample.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_jax import storage
from clip_jax.data.images.formats import EXTENSIONS
from clip_jax.data.sources.tar_members import (
    BLOCK,
    ZEROS,
    members,
    split_name,
    split_samples,
    why_not_a_tar,
)

MAGIC = b"cjtarix2"
OLD_MAGIC = b"cjtarix1"  # of an index that does not say what is wrong with a shard
CAPTION_EXTENSIONS = ("txt", "json", "caption", "text")
READ_AHEAD = 4 << 20  # bytes that are read at once from a URL
PARALLEL_FROM = 1 << 30  # bytes on a disk from which processes pay


class Shard(NamedTuple):
    """What the footer says of a shard."""

    name: str
    size: int  # bytes
    version: str  # of storage.FileInfo
    samples: int
    images: int  # samples with an image
    captions: int  # samples with a text or json member
    end: int  # block after the last sample
    scattered: int  # samples whose members do not lie side by side
    problem: str  # why it has no sample, or ""
    damage: tuple[int, ...]  # bytes at which headers are damaged


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
            for shard, starts in _scan_all(paths, infos, known, workers):
                shards.append(shard)
                file.write(starts.tobytes())
            footer = json.dumps({"shards": shards}).encode()
            file.write(footer + len(footer).to_bytes(8, "little") + MAGIC)
        partial.replace(path)
    return _load(path, tuple(paths))


def scan(path: str, info: storage.FileInfo) -> tuple[Shard, np.ndarray]:
    """The starts of the samples in one shard."""
    read = _reader(path, info.size)
    damage: list[int] = []
    samples: list[tuple[int, set[str]]] = []
    key, run, runs, end = None, [], {}, 0
    for member in members(read, 0, info.size, on_damage=damage.append):
        parts = split_name(member.name)
        if parts is None:
            continue
        if parts[0] != key and run:
            samples += _close(key, run, runs)
            run = []
        key = parts[0]
        run.append((parts[1], member.start))
        end = member.end
    if run:
        samples += _close(key, run, runs)
    problem = "" if samples else why_not_a_tar(read(0, min(info.size, BLOCK)))
    if samples and end != info.size and read(max(0, info.size - BLOCK), info.size) != ZEROS:
        damage.append(info.size)  # cut off: a tar ends in zeros, or with its last member
    shard = Shard(
        os.path.basename(path),
        info.size,
        info.version,
        len(samples),
        sum(_has(extensions, EXTENSIONS) for _, extensions in samples),
        sum(_has(extensions, CAPTION_EXTENSIONS) for _, extensions in samples),
        end // BLOCK,
        sum(len(found) > 1 and found >= {(True, True), (False, True)} for found in runs.values()),
        problem,
        tuple(damage) if samples else (),
    )
    return shard, np.array([start // BLOCK for start, _ in samples], np.uint32)


def _close(key: str, run: list, runs: dict[str, set]) -> list[tuple[int, set[str]]]:
    """The samples of members of one name; `runs` learns whether they have an image, and that alone."""
    samples = split_samples(run)
    for _, extensions in samples:
        image = _has(extensions, EXTENSIONS)
        alone = len(extensions) == 1 or not image
        runs.setdefault(key, set()).add((image, alone))
    return samples


def _has(extensions: set[str], wanted: Sequence[str]) -> bool:
    return any(name.rpartition(".")[2] in wanted for name in extensions)


def _reader(path: str, size: int):
    """Reads headers one by one from a disk, and long pieces from a URL."""
    if not storage.is_url(path):
        return lambda start, end: storage.read_range(path, start, end)
    window, window_start = b"", 0

    def read(start: int, end: int) -> bytes:
        nonlocal window, window_start
        if not window_start <= start <= end <= window_start + len(window):
            window_start = start
            window = storage.read_range(path, start, min(size, max(end, start + READ_AHEAD)))
        return window[start - window_start : end - window_start]

    return read


def _scan_all(paths, infos, known, workers) -> Iterator[tuple[Shard, np.ndarray]]:
    """Scan what is not known, in order; processes for disks, as parsing headers holds the GIL."""
    todo = [place for place, pair in enumerate(zip(paths, infos)) if pair not in known]
    arguments = [paths[place] for place in todo], [infos[place] for place in todo]
    remote = storage.is_url(paths[0])
    workers = workers or (32 if remote else min(os.cpu_count() or 1, 64))
    small = sum(infos[place].size for place in todo) < PARALLEL_FROM
    if workers == 1 or (small and not remote):
        yield from _merged(paths, infos, known, map(scan, *arguments))
        return
    size = 1 if remote else -(-len(todo) // (workers * 2)) or 1
    chunks = [list(zip(*arguments))[place : place + size] for place in range(0, len(todo), size)]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = pool.map(_scan_here if remote else _scan_in_process, chunks)
        yield from _merged(paths, infos, known, (one for chunk in found for one in chunk))


def _scan_here(chunk: list[tuple[str, storage.FileInfo]]) -> list[tuple[Shard, np.ndarray]]:
    return [scan(path, info) for path, info in chunk]


def _scan_in_process(chunk: list[tuple[str, storage.FileInfo]]) -> list[tuple[Shard, np.ndarray]]:
    # Not multiprocessing, which would run a caller's script again in each process, and that
    # script would wait here for the lock that we hold.
    done = subprocess.run(
        [sys.executable, "-m", "clip_jax.data.sources.tar_index"],
        input=pickle.dumps(chunk),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=True,
    )
    found = pickle.loads(done.stdout)
    if isinstance(found, OSError):
        raise found
    return [(Shard(*shard), starts) for shard, starts in found]


def _merged(paths, infos, known, found) -> Iterator[tuple[Shard, np.ndarray]]:
    for pair in zip(paths, infos):
        yield known[pair] if pair in known else next(found)


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


def _main():
    """Scan the shards that are pickled on standard input; a process of `build_index`."""
    try:
        found = [
            (tuple(shard), starts) for shard, starts in _scan_here(pickle.load(sys.stdin.buffer))
        ]
    except OSError as error:  # a shard that cannot be read, which the caller is to name
        found = error
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    _main()

"""Finds where the samples of tar shards start, by their headers, in threads or processes."""

import concurrent.futures
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
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


def scan(
    path: str, info: storage.FileInfo, read: Callable[[int, int], bytes] | None = None
) -> tuple[Shard, np.ndarray]:
    """The starts of the samples in one shard, of which `read` gives bytes."""
    read = read or _reader(path, info.size)
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


def scan_all(paths, infos, known, workers) -> Iterator[tuple[Shard, np.ndarray]]:
    """Scan shards on a disk that are not known, in order; in processes, as parsing holds the GIL."""
    todo = [pair for pair in zip(paths, infos) if pair not in known]
    workers = workers or min(os.cpu_count() or 1, 64)
    if workers == 1 or sum(info.size for _, info in todo) < PARALLEL_FROM:
        yield from merged(paths, infos, known, iter(scan_here(todo)))
        return
    size = -(-len(todo) // (workers * 2)) or 1
    chunks = [todo[place : place + size] for place in range(0, len(todo), size)]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        found = pool.map(_scan_in_process, chunks)
        yield from merged(paths, infos, known, (one for chunk in found for one in chunk))


def scan_here(chunk: Sequence[tuple[str, storage.FileInfo]]) -> list[tuple[Shard, np.ndarray]]:
    """The starts of the samples in some shards."""
    return [scan(path, info) for path, info in chunk]


def _scan_in_process(chunk: list[tuple[str, storage.FileInfo]]) -> list[tuple[Shard, np.ndarray]]:
    # Not multiprocessing, which would run a caller's script again in each process, and that
    # script would wait here for the lock that we hold.
    done = subprocess.run(
        [sys.executable, "-m", "clip_jax.data.sources.tar_scan"],
        input=pickle.dumps(chunk),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=True,
    )
    found = pickle.loads(done.stdout)
    if isinstance(found, OSError):
        raise found
    return [(Shard(*shard), starts) for shard, starts in found]


def merged(paths, infos, known, found) -> Iterator[tuple[Shard, np.ndarray]]:
    """What is known and what is found, in the order of the shards."""
    for pair in zip(paths, infos):
        yield known[pair] if pair in known else next(found)


def _main():
    """Scan the shards that are pickled on standard input; a process of `scan_all`."""
    try:
        found = [
            (tuple(shard), starts) for shard, starts in scan_here(pickle.load(sys.stdin.buffer))
        ]
    except OSError as error:  # a shard that cannot be read, which the caller is to name
        found = error
    sys.stdout.buffer.write(pickle.dumps(found))


if __name__ == "__main__":
    _main()

"""An index of shards in a bucket, built by all hosts together and kept beside the shards.

Each host scans some of the shards and writes what it found as a part, into a folder beside them.
A host that has done its own takes over those of others, so that a host that is late or gone delays
nobody for long, and what was found before a restart is not read again.
"""

import concurrent.futures
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence

import fsspec
import jax
import numpy as np
from absl import logging

from clip_jax import storage
from clip_jax.data.sources.tar_scan import Shard

PART_SHARDS = 16  # in a part
WAIT_S = 20.0  # for a part of another host, before it is taken over
POLL_S = 1.0

Found = tuple[Shard, np.ndarray]
Scan = Callable[[Sequence[tuple[str, storage.FileInfo]]], list[Found]]


def hosts() -> tuple[int, int]:
    """Index and number of the processes of a job; no device is touched where there is but one."""
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def scan_together(
    shards: Sequence[tuple[str, storage.FileInfo]],
    folder: str,
    scan: Scan,
    *,
    threads: int,
    host: tuple[int, int] | None = None,
) -> Iterator[Found]:
    """What `scan` finds in the shards, in their order, of which other hosts do their part.

    Args:
      shards: path and FileInfo of each; equal on all hosts.
      folder: where parts are kept; a URL that all hosts can write, or a folder of this host.
      scan: finds the samples of some shards.
      threads: parts in work at once on this host.
      host: its index and their number; None: those of the job.
    """
    index, count = host or hosts()
    parts = [
        _Part(folder, shards[at : at + PART_SHARDS]) for at in range(0, len(shards), PART_SHARDS)
    ]
    done = _there(folder)
    own = [part for part in parts[index::count] if part.name not in done]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda part: part.make(scan), own):
            pass
        waited = 0.0
        while missing := [part for part in parts if part.name not in (done := _there(folder))]:
            if waited < WAIT_S and count > 1:
                time.sleep(POLL_S)
                waited += POLL_S
                continue
            # Others began at their first ones: the last are the least likely to be in work.
            some = missing[::-1][index % len(missing) :][:threads]
            logging.info(
                "%d parts of the index are missing; %d are made here.", len(missing), len(some)
            )
            for _ in pool.map(lambda part: part.make(scan), some):
                pass
        read = pool.map(_Part.read, parts)
        for found in read:
            yield from found


def forget(folder: str):
    """Remove the parts, once there is an index."""
    try:
        filesystem, name = fsspec.core.url_to_fs(folder)
        filesystem.rm(name, recursive=True)
    except Exception as error:  # of whatever type a client has: they are in nobody's way
        logging.info("%s could not be removed: %s", folder, error)


def can_write(folder: str) -> bool:
    """Whether files can be made in a folder behind a URL, which is only found out by trying."""
    if storage.is_web(folder):
        return False
    try:
        put(f"{folder}/.clip_jax_probe", b"", patient=False)
        filesystem, name = fsspec.core.url_to_fs(f"{folder}/.clip_jax_probe")
        filesystem.rm_file(name)
    except Exception:  # of whatever type a client has
        return False
    return True


def put(path: str, content: bytes, *, patient: bool = True):
    """Write a file on a disk or behind a URL; it appears when it is complete."""
    if not storage.is_url(path):
        storage.atomic_write(path, content)
        return
    filesystem, name = fsspec.core.url_to_fs(path)

    def write():
        try:
            filesystem.pipe_file(name, content)
        except FileNotFoundError:  # unlike a bucket's, its folders have to be made
            filesystem.makedirs(name.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(name, content)

    storage.retry(write, path, patient=patient)


class _Part:
    """Some shards, and the file in which stands what was found in them."""

    def __init__(self, folder: str, shards: Sequence[tuple[str, storage.FileInfo]]):
        digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()[:20]
        self.name, self._shards = f"{digest}.part", shards
        self._path = f"{folder}/{self.name}"

    def make(self, scan: Scan):
        found = scan(self._shards)
        head = json.dumps([shard for shard, _ in found]).encode() + b"\n"
        put(self._path, head + b"".join(starts.tobytes() for _, starts in found))

    def read(self) -> list[Found]:
        head, _, content = storage.read_file(self._path).partition(b"\n")
        shards = [Shard(*entry[:-1], tuple(entry[-1])) for entry in json.loads(head)]
        ends = np.cumsum([shard.samples for shard in shards])[:-1]
        return list(zip(shards, np.split(np.frombuffer(content, np.uint32), ends)))


def _there(folder: str) -> set[str]:
    try:
        filesystem, name = fsspec.core.url_to_fs(folder)
        filesystem.invalidate_cache(name)
        return {path.rpartition("/")[2] for path in filesystem.ls(name, detail=False)}
    except FileNotFoundError:
        return set()

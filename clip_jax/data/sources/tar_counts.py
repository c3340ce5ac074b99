"""Tar shards of which only the numbers of samples are known, so that no byte is read to begin with.

img2dataset writes them into `_stats.json` and `.parquet` beside each shard, webdataset's tools into
`sizes.json`. Where a sample lies is then read from the headers of its shard, which is fetched whole.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from clip_jax import storage
from clip_jax.data.block_order import Blocks
from clip_jax.data.sources import tar_parts, tar_scan
from clip_jax.data.sources.tar_members import BLOCK
from clip_jax.data.sources.tar_scan import Shard

SIZES = "sizes.json"  # {"00000.tar": 10000, ...}, beside the shards
REQUESTS = 256  # at once, of small files
MOST_PROBED = 4 << 20  # bytes of a shard's beginning that are looked at


@dataclass(frozen=True)
class TarCounts:
    """What `TarIndex` is, but for where samples lie."""

    paths: tuple[str, ...]
    shards: tuple[Shard, ...]
    first_S: np.ndarray  # number of the first sample of each shard, and of all samples

    whole = True  # shards are read whole

    def __len__(self) -> int:
        return int(self.first_S[-1])

    def blocks(self) -> Blocks:
        """Whole shards."""
        first_K = np.unique(self.first_S)
        return Blocks(first_K, sum(shard.size for shard in self.shards) / (len(first_K) - 1))

    def span(self, start: int, end: int) -> tuple[int, int, int]:
        """Shard of a run of samples, and the bytes of it that are read for them: all of it."""
        shard = int(np.searchsorted(self.first_S, start, side="right")) - 1
        return shard, 0, self.shards[shard].size

    def borders(self, start: int, end: int, data: bytes | bytearray) -> np.ndarray:
        """The byte of `data` at which each sample of the shard begins, and at which the last one ends.

        There may be fewer than the counts say: what is missing is a bad sample.
        """
        number = self.span(start, end)[0]
        expected, view = self.shards[number], memoryview(data)
        found, starts = tar_scan.scan(
            self.paths[number],
            storage.FileInfo(len(data), expected.version),
            lambda first, last: bytes(view[first:last]),
        )
        if found.samples != expected.samples and len(data) == expected.size:
            logging.warning(
                "%s has %d samples and should have %d: delete %s, or build an index with `clip-jax "
                "data index SOURCE`.",
                self.paths[number], found.samples, expected.samples, SIZES,
            )  # fmt: skip
        if found.scattered:
            raise ValueError(
                f"{self.paths[number]}: the members of {found.scattered} samples do not lie beside "
                "each other: write it again in the order of its names, as `tar --sort=name` does"
            )
        borders = np.append(starts.astype(np.int64), found.end) * BLOCK
        return borders[: expected.samples + 1]

    @property
    def fingerprint(self) -> str:
        """Of the shards' sizes and sample counts, as an index has it."""
        parts = [(os.path.basename(s.name), s.size, s.samples) for s in self.shards]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def beginning(self) -> tuple[int, bytes]:
        """Number of the first sample of the first shard with any, and the shard's first bytes."""
        number = next(place for place, shard in enumerate(self.shards) if shard.samples)
        size = min(self.shards[number].size, MOST_PROBED)
        return int(self.first_S[number]), storage.read_range(self.paths[number], 0, size)


def open_counts(paths: Sequence[str], cache: Path) -> TarCounts | None:
    """How many samples shards have, as files beside them say; None where none does.

    Of what is read from a file for each shard a copy is kept, beside the shards or in `cache`.
    """
    infos = storage.stat(paths)
    folder = paths[0].rpartition("/")[0]
    kept = [f"{folder}/{SIZES}", str(_kept(paths, infos, cache))]
    for place in kept:
        counts = _from_sizes(place, paths, infos)
        if counts is not None:
            return _with_counts(paths, infos, counts)
    known = _names_beside(folder, paths)
    for suffix, count in (("_stats.json", _from_stats), (".parquet", _from_parquet)):
        if all(_beside(path, suffix) in known for path in paths):
            counts = _ask_each(paths, infos, suffix, count)
            if counts is not None:
                _keep(kept, paths, counts)
                return _with_counts(paths, infos, counts)
    return None


def _with_counts(paths: Sequence[str], infos: Sequence, counts: Sequence[int]) -> TarCounts:
    shards = tuple(
        Shard(os.path.basename(path), *info, count, count, count, info.size // BLOCK, 0,
              "" if count else "has no sample in it", ())
        for path, info, count in zip(paths, infos, counts)
    )  # fmt: skip
    return TarCounts(tuple(paths), shards, np.cumsum([0, *counts]))


def _kept(paths: Sequence[str], infos: Sequence, cache: Path) -> Path:
    digest = hashlib.sha256(json.dumps([paths, infos]).encode()).hexdigest()[:12]
    return cache.expanduser() / "indexes" / f"{digest}.{SIZES}"


def _from_sizes(place: str, paths: Sequence[str], infos: Sequence) -> list[int] | None:
    if not storage.is_file(place):
        return None
    try:
        sizes = json.loads(storage.read_file(place))
        return [_count(sizes[os.path.basename(p)], p, info.size) for p, info in zip(paths, infos)]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        logging.warning(
            "%s does not say the samples of each shard (%r) and is not used.", place, error
        )
        return None


def _names_beside(folder: str, paths: Sequence[str]) -> set[str]:
    if not storage.is_url(folder):
        return {f"{folder}/{name}" for name in os.listdir(folder or ".")}
    if storage.is_web(folder):  # which cannot list: the first one says whether there are others
        beside = (_beside(paths[0], suffix) for suffix in ("_stats.json", ".parquet"))
        found = next((one for one in beside if storage.is_file(one)), None)
        suffix = found and found.removeprefix(paths[0].removesuffix(".tar"))
        return {_beside(path, suffix) for path in paths} if suffix else set()
    return {f"{folder}/{name}" for name in storage.listing(folder)}


def _beside(path: str, suffix: str) -> str:
    return path.removesuffix(".tar") + suffix


def _ask_each(
    paths: Sequence[str], infos: Sequence, suffix: str, count: Callable[[str], object]
) -> list[int] | None:
    logging.info("Reading the number of samples of %d shards from *%s.", len(paths), suffix)
    with concurrent.futures.ThreadPoolExecutor(min(REQUESTS, len(paths))) as pool:
        try:
            found = list(pool.map(lambda path: count(_beside(path, suffix)), paths))
            return [_count(n, path, info.size) for n, path, info in zip(found, paths, infos)]
        except (KeyError, TypeError, ValueError, RecursionError, ImportError) as error:
            logging.warning("*%s do not say the samples of each shard: %r.", suffix, error)
            return None


def _count(value: object, path: str, size: int) -> int:
    """A number of samples that a shard of so many bytes may have."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    most = size // BLOCK  # each has a header at least
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
        raise ValueError(f"{path}, of {size} bytes, cannot have {value!r:.40} samples")
    return number


def _from_stats(path: str) -> object:
    return json.loads(storage.read_file(path))["successes"]


def _from_parquet(path: str) -> int:
    # pyarrow is an extra, and slow to import.
    import io

    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(storage.read_file(path)), columns=["status"])
    return table["status"].to_pylist().count("success")


def _keep(places: Sequence[str], paths: Sequence[str], counts: Sequence[int]):
    content = json.dumps({os.path.basename(path): count for path, count in zip(paths, counts)})
    for place in places:
        try:
            tar_parts.put(place, content.encode(), patient=False)
            return
        except Exception as error:  # of whatever type a client has; then there is the next place
            logging.info("%s cannot be written: %s", place, error)

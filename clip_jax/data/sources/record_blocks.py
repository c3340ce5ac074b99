"""ArrayRecord files behind URLs, read in blocks of neighbouring records."""

import concurrent.futures
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from clip_jax import storage
from clip_jax.data.block_cache import Span
from clip_jax.data.block_order import Blocks, block_bytes
from clip_jax.data.samples import Sample
from clip_jax.data.sources import record_chunks

REQUESTS = 64  # at once, of files' ends
KEPT_TAILS = 64  # footers of files; one of 10,000 records has some 100 kB
KEPT_BLOCKS = 2  # that are read whole for records out of order


class DamagedRecord(ValueError):
    """A record whose bytes are not what was written."""


class RecordBlocks:
    """The records of several files by number, of which the bytes are fetched by blocks.

    Args:
      paths: the files.
      infos: of each.
      known: of each what its manifest says, "blocks" among it; what it does not say is read from
        the files' ends.
    """

    def __init__(
        self, paths: Sequence[str], infos: Sequence[storage.FileInfo], known: Sequence[dict]
    ):
        self._paths, self._infos = tuple(paths), tuple(infos)
        with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
            entries = list(pool.map(_entry, paths, infos, known))
        self.counts = [entry["samples"] for entry in entries]
        first, firsts, files, bytes_K2 = 0, [], [], []
        for file, entry in enumerate(entries):
            starts = [start for _, start in entry["blocks"]]
            bytes_K2 += zip(starts, [*starts[1:], entry["footer"]])
            firsts += [first + record for record, _ in entry["blocks"]]
            files += [file] * len(starts)
            first += entry["samples"]
        self._first_K = np.array([*firsts, first], np.int64)
        self._file_K = np.array(files, np.int32)
        self._bytes_K2 = np.array(bytes_K2, np.int64).reshape(-1, 2)
        self._first_S = np.cumsum([0, *self.counts])
        self._open()

    def _open(self):
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._tails: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        self._blocks: OrderedDict[int, list[bytes | None]] = OrderedDict()

    def __getstate__(self) -> dict:
        """Without what was read."""
        own = ("_lock", "_reading", "_tails", "_blocks")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._open()

    @property
    def blocks(self) -> Blocks:
        """All of them."""
        return Blocks(self._first_K, float(np.diff(self._bytes_K2).mean()))

    def span(self, start: int, end: int) -> Span:
        """The block in which records `start` to `end` lie."""
        block = self._block_of(start)
        assert end <= self._first_K[block + 1]
        file = int(self._file_K[block])
        return Span(self._paths[file], *self._bytes_K2[block].tolist(), self._infos[file])

    def unpack(self, start: int, end: int, data: bytes | bytearray) -> list[bytes | None]:
        """Records `start` to `end` of the bytes of their span; None is a damaged one."""
        block = self._block_of(start)
        file = int(self._file_K[block])
        first, size = int(self._first_S[file]), self._infos[file].size
        byte = int(self._bytes_K2[block, 0])
        records = range(start - first, end - first)
        return record_chunks.read_records(size, byte, data, *self._tail(file), records)

    def __getitem__(self, index: int) -> bytes:
        """A record that is read out of order, with its block."""
        block = self._block_of(index)
        first, end = self._first_K[block : block + 2].tolist()
        with self._reading:  # neighbours ask at the same time, and one of them reads
            if block not in self._blocks:
                path, *places, info = self.span(first, end)
                data = storage.read_range(path, *places, info=info)
                self._blocks[block] = self.unpack(first, end, data)
                while len(self._blocks) > KEPT_BLOCKS:
                    self._blocks.popitem(last=False)
            record = self._blocks[block][index - first]
        if record is None:
            raise DamagedRecord
        return record

    def _block_of(self, index: int) -> int:
        return int(np.searchsorted(self._first_K, index, side="right")) - 1

    def _tail(self, file: int) -> tuple[int, bytes]:
        with self._lock:
            if file in self._tails:
                self._tails.move_to_end(file)
                return self._tails[file]
        footer = int(self._bytes_K2[self._file_K == file].max())
        info = self._infos[file]
        tail = storage.read_range(self._paths[file], footer, info.size, info=info)
        with self._lock:
            self._tails[file] = footer, tail
            while len(self._tails) > KEPT_TAILS:
                self._tails.popitem(last=False)
        return footer, tail


class RecordRun:
    """Samples of a block, from number `first` on."""

    def __init__(self, parse: Callable[..., Sample], first: int, records: list[bytes | None]):
        self._parse, self._first, self._records = parse, first, records

    def __getitem__(self, index: int) -> Sample:
        def record() -> bytes:
            found = self._records[index - self._first]
            if found is None:
                raise DamagedRecord
            return found

        return self._parse(index, record)


def describe(path: str, info: storage.FileInfo) -> dict:
    """What is to be known of a file: its samples, its blocks as first record and byte, its footer."""
    footer, tail = record_chunks.read_tail(path, info)
    layout = record_chunks.parse_layout(footer, tail)
    samples = int(layout.first_C[-1])
    if not samples:
        return {"samples": 0, "blocks": [], "footer": footer}
    each = block_bytes(footer, samples)
    borders = layout.offset_C[0] + np.arange(max(1, round(footer / each))) * each
    chunks = np.unique(np.searchsorted(layout.offset_C[:-1], borders))
    chunks = chunks[chunks < len(layout.first_C) - 1]
    blocks = [[int(layout.first_C[chunk]), int(layout.offset_C[chunk])] for chunk in chunks]
    return {"samples": samples, "blocks": blocks, "footer": footer}


def _entry(path: str, info: storage.FileInfo, known: dict) -> dict:
    if not {"samples", "blocks", "footer"} <= known.keys():
        return describe(path, info)
    try:
        blocks = np.array([[0, 0], *known["blocks"], [known["samples"], known["footer"]]], np.int64)
        steps_K2 = np.diff(blocks, axis=0)[1:]
        fits = bool((steps_K2 > 0).all()) and not blocks[:2, 0].any() and blocks[-1, 1] < info.size
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(
            f"{path} does not have the blocks that the manifest beside it names; convert it again, or "
            "delete the manifest"
        )
    return known

"""Reads whole blocks ahead of training, into bounded memory, in the order that they are needed."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from absl import logging

from clip_jax import storage
from clip_jax.data.block_cache import BlockCache, Span
from clip_jax.data.block_order import BlockOrder, Piece, Window
from clip_jax.data.samples import Sample

CONNECTIONS = (
    64  # requests at once: a thread of each waits, so that their number is no matter of cores
)
SPARE = 256_000_000  # bytes ahead of the windows in use, beyond a share of them
MOST_STEPS = 64  # that are read ahead: of small data this would be epochs
SOON = 4  # steps whose blocks are read first where many are to be read
AHEAD = 1.0  # share of the windows in use that is read ahead
PART_BYTES = 16_000_000  # of a request: whole shards are read in parts, on several connections


class Run(Protocol):
    """Samples of a run whose bytes have been read."""

    def __getitem__(self, index: int) -> Sample:
        """The sample with this number in its source; raises BadSample."""
        ...


class BlockSource(Protocol):
    """What a source has besides, that can be read in blocks."""

    def span(self, start: int, end: int) -> Span:
        """Where samples `start` to `end`, which lie in one block, are."""
        ...

    def unpack(self, start: int, end: int, data: bytes | bytearray) -> Run:
        """These samples, of the bytes of their span."""
        ...


class BlockReader:
    """The samples of some rows of every batch, from `step` on.

    A window is read when it is soon needed and forgotten after the last step that needs it. What
    `windows` does not foresee, such as a step that was passed already, is read when it is asked for.

    Args:
      sources: as the order has them.
      order: of training.
      rows: of every batch, which this reader serves.
      step: the first one.
      memory: bytes of blocks that are held, at most.
      cache: files that were read before; None: none are kept.

    Raises:
      ValueError: the windows of one step do not fit into `memory`.
    """

    def __init__(
        self,
        sources: Sequence[BlockSource],
        order: BlockOrder,
        rows: range,
        step: int,
        *,
        memory: int,
        cache: BlockCache | None = None,
    ):
        self._sources, self._cache, self._memory = tuple(sources), cache, memory
        self._order, self._rows = order, rows
        self._lock, self._closed = threading.Lock(), False
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="blocks")
        self._held: dict[tuple[int, int, int], _Held] = {}
        self._queue: list[tuple[Piece, Future]] = []
        self._used = self.most_used = 0
        try:
            self._start(step)
        except ValueError:
            self.close()
            raise

    def sample(self, step: int, source: int, index: int, window: tuple[int, int, int]) -> Sample:
        """A sample of a window that a step needs, which is waited for."""
        with self._lock:
            if self._closed:
                raise CancelledError
            if window not in self._held:
                self._step = max(self._step, step)
                self._advance()
            held = self._held.get(window)
        if held is None:
            logging.log_every_n_seconds(
                logging.WARNING, "A block is read out of order, for sample %d.", 60, index
            )
            return self._read(self._alone(source, index))[index]
        number = held.number_of(source, index)
        return held.runs[number].result()[index]

    def done(self, step: int):
        """Rows up to those of `step` have been made: their windows are forgotten, others read."""
        with self._lock:
            if self._closed:
                return
            self._step = max(self._step, step + 1)
            for key in [key for key, held in self._held.items() if held.window.last_step <= step]:
                self._used -= self._held.pop(key).size
            self._advance()

    def close(self):
        """Stop reading."""
        with self._lock:
            self._closed = True
            for held in self._held.values():
                for run in held.runs:
                    run.cancel()
            self._held.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, step: int):
        self._step = step
        self._windows = self._order.windows(self._rows, step)
        self._next = next(self._windows)
        self._limit = self._memory  # the first windows alone say what more there should be
        with self._lock:
            self._advance(ahead=False)
            if self._used > self._memory:
                raise ValueError(
                    f"the blocks of one step have {self._used / 1e6:.0f} MB in this process, more than "
                    f"data.read_ahead_mb gives it ({self._memory / 1e6:.0f} MB): raise it, or lower "
                    "data.shuffle_window_mb, which changes the order"
                )
            self._limit = min(self._memory, int(self._used * (1 + AHEAD)) + SPARE)
            self._advance()

    def _advance(self, *, ahead: bool = True):
        """Begin to read windows: those that are needed now, and others as far as memory goes."""
        while True:
            window = self._next
            spans = [self._sources[p.source].span(p.start, p.end) for p in window.pieces]
            size = sum(span.end - span.start for span in spans)
            needed = window.first_step <= self._step
            too_early = not ahead or window.first_step > self._step + MOST_STEPS
            if not needed and (too_early or self._used + size > self._limit):
                break
            self._held[window[2:5]] = _Held(window, [Future() for _ in window.pieces], size)
            self._used += size
            self.most_used = max(self.most_used, self._used)
            self._queue += zip(window.pieces, self._held[window[2:5]].runs)
            self._next = next(self._windows)
        if ahead and self._queue:
            for piece, run in sorted(self._queue, key=self._urgency()):
                fetch = _Fetch(self, piece, run)
                for part in fetch.parts:
                    self._pool.submit(fetch.read, part)
            self._queue.clear()

    def _urgency(self) -> Callable[[tuple[Piece, Future]], int]:
        """In which of the next steps a piece is needed; a window is read over many of them."""
        if len(self._queue) < CONNECTIONS:
            return lambda entry: 0
        size, count = self._order.batch_size, len(self._rows)
        steps = np.arange(self._step, self._step + SOON)[:, None] * size
        found = self._order.rows((steps + np.arange(self._rows.start, self._rows.stop)).ravel())
        first: dict[tuple[int, int], int] = {}
        starts = {source: [] for source in range(len(self._sources))}
        for piece, _ in self._queue:
            starts[piece.source].append(piece.start)
        sorted_starts = {source: np.sort(some) for source, some in starts.items() if some}
        for place, (source, index) in enumerate(zip(found.source.tolist(), found.index.tolist())):
            known = sorted_starts.get(source)
            if known is not None and (at := int(np.searchsorted(known, index, side="right"))):
                first.setdefault((source, int(known[at - 1])), place // count)
        return lambda entry: first.get((entry[0].source, entry[0].start), SOON)

    def span(self, piece: Piece) -> Span:
        """Where a piece is."""
        return self._sources[piece.source].span(piece.start, piece.end)

    def find(self, span: Span) -> bytes | None:
        """The bytes of a span, where they were read before."""
        return self._cache.get(span) if self._cache is not None else None

    def request(self, span: Span) -> bytes:
        """The bytes of a span, from far away."""
        return storage.read_range(span.path, span.start, span.end, info=span.info)

    def unpack(self, piece: Piece, span: Span, data: bytes | bytearray, *, keep: bool) -> Run:
        """The samples of a piece, whose bytes are kept for later epochs."""
        if keep and self._cache is not None:
            self._cache.put(span, data)
        return self._sources[piece.source].unpack(piece.start, piece.end, data)

    def _read(self, piece: Piece) -> Run:
        span = self.span(piece)
        data = self.find(span)
        return self.unpack(piece, span, data or self.request(span), keep=data is None)

    def _alone(self, source: int, index: int) -> Piece:
        return Piece(source, index, index + 1)


class _Fetch:
    """A piece that is read in parts of megabytes, of which whoever reads the last one unpacks it."""

    def __init__(self, reader: BlockReader, piece: Piece, run: Future):
        self._reader, self._piece, self._run = reader, piece, run
        self._span = reader.span(piece)
        size = self._span.end - self._span.start
        count = max(1, size // PART_BYTES)
        edges = [size * number // count for number in range(count + 1)]
        self.parts = [range(*pair) for pair in itertools.pairwise(edges)]
        self._lock, self._left, self._begun = threading.Lock(), count, False
        self._data = bytearray()

    def read(self, part: range):
        """Read some of its bytes; the failure of one part is that of the piece."""
        try:
            with self._lock:
                if not self._begun:
                    self._begin()
            if self._run.done():  # found, failed or cancelled
                return
            path, first, _, info = self._span
            data = self._reader.request(Span(path, first + part.start, first + part.stop, info))
            if len(self.parts) == 1:
                self._end(data)
                return
            self._data[part.start : part.stop] = data
            with self._lock:
                self._left -= 1
                last = not self._left
            if last:
                self._end(self._data)
                self._data = bytearray()
        except BaseException as error:  # for the row that waits
            with contextlib.suppress(InvalidStateError):  # another part has failed before
                self._run.set_exception(error)

    def _begin(self):
        self._begun = True
        if not self._run.set_running_or_notify_cancel():
            return
        found = self._reader.find(self._span)
        if found is not None:
            self._run.set_result(self._reader.unpack(self._piece, self._span, found, keep=False))
        elif len(self.parts) > 1:
            self._data = bytearray(self._span.end - self._span.start)

    def _end(self, data: bytes | bytearray):
        self._run.set_result(self._reader.unpack(self._piece, self._span, data, keep=True))


class _Held(NamedTuple):
    """A window that is being read, or has been."""

    window: Window
    runs: list[Future]
    size: int  # bytes

    def number_of(self, source: int, index: int) -> int:
        """Which of its pieces a sample is in."""
        for number, piece in enumerate(self.window.pieces):
            if piece.source == source and piece.start <= index < piece.end:
                return number
        raise AssertionError(f"sample {index} of source {source} is in another window")

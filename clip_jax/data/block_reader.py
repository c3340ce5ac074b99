"""Reads whole blocks ahead of training, into bounded memory, in the order that they are needed."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
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

    def unpack(self, start: int, end: int, data: bytes) -> Run:
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
        self._used = self.most_used = self.bytes_read = self.requests = 0
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
                self._pool.submit(self._fill, run, piece)
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

    def _fill(self, run: Future, piece: Piece):
        try:
            if run.set_running_or_notify_cancel():
                run.set_result(self._read(piece))
        except BaseException as error:  # for the row that waits
            run.set_exception(error)

    def _read(self, piece: Piece) -> Run:
        source = self._sources[piece.source]
        span = source.span(piece.start, piece.end)
        data = self._cache.get(span) if self._cache is not None else None
        if data is None:
            data = storage.read_range(span.path, span.start, span.end, info=span.info)
            with self._lock:
                self.bytes_read += len(data)
                self.requests += 1
            if self._cache is not None:
                self._cache.put(span, data)
        return source.unpack(piece.start, piece.end, data)

    def _alone(self, source: int, index: int) -> Piece:
        return Piece(source, index, index + 1)


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

"""The loader: batches of a dataset in order, read ahead by threads, and the counts of bad samples.

The step number is the whole state. Order is not left to a library: Grain's iterator state, restored
with another number of workers, gives other data without an error.
"""

import abc
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.dataset import Dataset, Spec, fill

MOST_ROWS = 16  # of a batch that a thread takes at once
AHEAD = 2  # batches that are read before they are asked for


class Batches(abc.ABC):
    """An iterator of batches that holds threads or processes: close it, or use `with`.

    A subclass says how: `_read` is called for one step after another, `_stop` once at the end.
    `check` is called with the counts of bad samples after every batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        step: int,
        bad_samples: BadSamples,
        check: Callable[[BadSamples], None],
    ):
        self._dataset = dataset
        self.step = step  # number of the batch that comes next
        self.bad_samples = bad_samples
        self._check = check
        self._closed = False

    @abc.abstractmethod
    def _read(self, step: int) -> tuple[dict[str, np.ndarray], list]:
        """The arrays and the bad samples of a batch; StopIteration after the last one."""

    @abc.abstractmethod
    def _stop(self):
        """Stop threads or processes, which may not have been started."""

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._closed:
            raise ValueError("these batches are closed")
        arrays, bad = self._read(self.step)
        self.step += 1
        self.bad_samples.record(self._dataset.samples(arrays), bad)
        self._check(self.bad_samples)
        return arrays

    def close(self):
        """Stop the threads or processes."""
        if not self._closed:
            self._closed = True
            self._stop()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc):
        self.close()


class ThreadBatches(Batches):
    """Batches `step`, `step` + 1, ... below `end`, whose rows threads write into their arrays."""

    def __init__(
        self,
        dataset: Dataset,
        step: int,
        end: int,
        *,
        threads: int,
        bad_samples: BadSamples,
        check: Callable[[BadSamples], None],
    ):
        super().__init__(dataset, step, bad_samples, check)
        self._end, self._threads = end, threads
        # Handing over a row costs as much as a tenth of a picture's decoding: several at once.
        self._rows = max(1, min(MOST_ROWS, dataset.rows // threads))
        self._next, self._pool = step, None
        self._asked: deque[tuple[dict[str, np.ndarray], list[Future]]] = deque()

    @property
    def left(self) -> int:
        """Batches that come still."""
        return self._end - self.step

    @property
    def spec(self) -> Spec:
        """Shapes and types of the arrays of a batch."""
        return self._dataset.spec

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], list]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="data")
        while self._next < min(step + 1 + AHEAD, self._end):
            self._ask(self._next)
            self._next += 1
        if not self._asked:
            raise StopIteration
        arrays, parts = self._asked.popleft()
        bad = [error for part in parts for error in part.result()]
        self._dataset.release(step)
        return arrays, bad

    def _ask(self, step: int):
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in self.spec.items()}
        self._asked.append((arrays, self._submit(fill, arrays, self._dataset, step)))

    def _submit(self, function: Callable, *arguments) -> list[Future]:
        """Call it with the arguments and some rows of a batch, for all rows."""
        rows = range(self._dataset.rows)
        return [
            self._pool.submit(function, *arguments, rows[first : first + self._rows])
            for first in range(0, len(rows), self._rows)
        ]

    def _stop(self):
        self._asked.clear()
        self._dataset.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


class EqualBatches:
    """As many batches in every process, even where one of them cannot read its own.

    The processes compute each batch together, so one that stopped at a failure would leave the
    others waiting. Its batches are empty from then on, and `error` says why. One that is `alone`
    raises at once.
    """

    def __init__(self, batches: ThreadBatches, *, alone: bool):
        self.error: Exception | None = None
        self._batches, self._alone = batches, alone

    def __enter__(self) -> "EqualBatches":
        return self

    def __exit__(self, *exc):
        self._batches.close()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for _ in range(self._batches.left):
            if self.error is None:
                try:
                    yield next(self._batches)
                    continue
                except Exception as error:
                    if self._alone:
                        raise
                    self.error = error
            spec = self._batches.spec.items()
            yield {name: np.zeros(shape, dtype) for name, (shape, dtype) in spec}

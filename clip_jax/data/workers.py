"""Batches from worker processes, in order, whatever happens to the processes.

Grain's own were tried first. One of theirs that is killed while it writes leaves the reader waiting
at a pipe that stays open, and one that hangs is waited for without end.
"""

import contextlib
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import cloudpickle
import numpy as np
from absl import logging

from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.batches import Batches
from clip_jax.data.dataset import Spec, TrainDataset, fill
from clip_jax.redaction import masks_logs, redact_logs

DEPTH = 2  # batches that each process has in work or ready
STALL_SECONDS = 300.0  # without a batch; then a process is taken for hung and replaced
MAX_RESTARTS = 5  # of one process without a batch in between
NAME = "clip_jax-data-worker"


class WorkerBatches(Batches):
    """Batches `step`, `step` + 1, ...; process w of n does every n-th, from w on.

    A batch is written into shared memory and copied out of it here. A process that dies, or gives
    nothing for STALL_SECONDS, is replaced and gets the same steps again: the order is the same.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        step: int,
        *,
        workers: int,
        threads: int,
        ledger: BadSamples,
        check: Callable[[BadSamples], None],
    ):
        super().__init__(step, ledger, check)
        self._dataset, self._first, self._threads = dataset, step, threads
        self._count, self._workers = workers, []

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], list]:
        if not self._workers:
            self._start()
        found = self._worker_of(step).take(step)
        self._ask(step + self._count * DEPTH)
        return found

    def _start(self):
        pickled = cloudpickle.dumps((self._dataset, self._threads))
        spec = self._dataset.spec
        self._workers = [_Worker(pickled, spec, number) for number in range(self._count)]
        for number in range(self._count * DEPTH):
            self._ask(self._first + number)

    def _stop(self):
        for worker in self._workers:
            worker.close()

    def _worker_of(self, step: int) -> "_Worker":
        return self._workers[(step - self._first) % len(self._workers)]

    def _ask(self, step: int):
        place = (step - self._first) // len(self._workers) % DEPTH
        self._worker_of(step).ask(step, place)


class _Worker:
    """A process, its pipe, and the pieces of shared memory that it writes into."""

    def __init__(self, pickled: bytes, spec: Spec, number: int):
        self._pickled, self._spec, self._number = pickled, spec, number
        self._asked: deque[tuple[int, int]] = deque()  # step, and piece of memory for it
        size = sum(_size(*entry) for entry in spec.values())
        self._memory = [SharedMemory(create=True, size=size) for _ in range(DEPTH)]
        self._start()

    def ask(self, step: int, place: int):
        """Let it make the batch of a step, which goes into that piece of memory."""
        self._asked.append((step, place))
        self._send(step, place)

    def take(self, step: int) -> tuple[dict[str, np.ndarray], list]:
        """The arrays and bad samples of the batch that was asked for first, of this step."""
        for _ in range(MAX_RESTARTS):
            reply = self._receive()
            if reply is not None:
                expected, place = self._asked.popleft()
                found, bad, error = reply
                assert found == expected == step
                if error is not None:
                    raise error
                arrays = _arrays(self._memory[place], self._spec)
                return {name: array.copy() for name, array in arrays.items()}, bad
            self._stop()
            end = f"ended with exit code {self._process.exitcode}"
            logging.warning("Data worker %d %s and is replaced.", self._number, end)
            self._start()
        raise RuntimeError(
            f"data worker {self._number} {end} {MAX_RESTARTS} times at batch {step}; -9 is often a "
            "want of memory. Lower data.workers, or set it to 0 to see what happens"
        )

    def close(self):
        """Stop the process and free the memory."""
        self._stop()
        for memory in self._memory:
            memory.close()
            with contextlib.suppress(FileNotFoundError):
                memory.unlink()

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        names = [memory.name for memory in self._memory]
        self._process = context.Process(
            target=_work,
            args=(theirs, self._pickled, self._spec, names, masks_logs()),
            name=f"{NAME}-{self._number}",
            daemon=True,
        )
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does
        for step, place in self._asked:
            self._send(step, place)

    def _stop(self):
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _send(self, step: int, place: int):
        with contextlib.suppress(OSError):  # it has died, which `take` finds out
            self._pipe.send((step, place))

    def _receive(self) -> tuple | None:
        """Step, bad samples and error, or None where the process died or hangs."""
        if not self._pipe.poll(STALL_SECONDS):
            logging.warning("No batch for %g s from data worker %d.", STALL_SECONDS, self._number)
            return None
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return None


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64


def _arrays(memory: SharedMemory, spec: Spec) -> dict[str, np.ndarray]:
    """The arrays of a batch inside a piece of shared memory."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in spec.items():
        arrays[name] = np.ndarray(shape, dtype, memory.buf, offset)
        offset += _size(shape, dtype)
    return arrays


def _work(pipe: Connection, pickled: bytes, spec: Spec, names: list[str], masked: bool):
    """What a process does: make the batches that it is asked for, until the pipe ends."""
    # Ctrl-C reaches the whole group; the training process alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if masked:  # before anything can be logged
        redact_logs()
    dataset, threads = cloudpickle.loads(pickled)
    memory = [SharedMemory(name=name) for name in names]
    with ThreadPoolExecutor(threads) as pool, contextlib.suppress(EOFError, OSError):
        while True:
            step, place = pipe.recv()
            try:
                bad, error = _fill(_arrays(memory[place], spec), dataset, step, pool), None
            except Exception as caught:
                bad, error = [], _portable(caught)
            pipe.send((step, bad, error))


def _fill(arrays: dict[str, np.ndarray], dataset: TrainDataset, step: int, pool) -> list:
    rows = ([row] for row in range(dataset.rows))
    parts = pool.map(lambda part: fill(arrays, dataset, step, part), rows)
    return [error for part in parts for error in part]


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot be sent, one that says the same."""
    error.add_note("In a data worker:\n" + "".join(traceback.format_exception(error)))
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

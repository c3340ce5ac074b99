"""Batches from worker processes, in order, whatever happens to the processes.

Grain's own were tried first. One of theirs that is killed while it writes leaves the reader waiting
at a pipe that stays open, and one that hangs is waited for without end.
"""

import contextlib
import mmap
import multiprocessing
import os
import signal
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import reduction
from multiprocessing.connection import Connection

import cloudpickle
import numpy as np
from absl import logging

from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.batches import Batches
from clip_jax.data.block_order import BlockOrder
from clip_jax.data.dataset import Spec, TrainDataset, fill
from clip_jax.redaction import masks_logs, redact_logs

DEPTH = 2  # batches that each process has in work or ready
STALL_SECONDS = 300.0  # without a row; then a process is taken for hung and replaced
TICK_SECONDS = 1.0  # counted one by one: the time that a suspended machine slept is no hang
MAX_RESTARTS = 5  # of one process without a batch in between
NAME = "clip_jax-data-worker"
READY = None  # what a process says first


class WorkerBatches(Batches):
    """Batches `step`, `step` + 1, ...; process w of n does every n-th, from w on.

    Where blocks are read, each does its share of the rows of every batch instead, so that a block is
    read by one of them alone.

    A batch is written into shared memory and copied out of it here. A process that dies, or that
    is ready and finishes no row for STALL_SECONDS, is replaced and gets the same steps again: the
    order is the same.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        step: int,
        *,
        workers: int,
        threads: int,
        bad_samples: BadSamples,
        check: Callable[[BadSamples], None],
    ):
        super().__init__(dataset, step, bad_samples, check)
        self._first, self._threads = step, threads
        self._by_rows = isinstance(dataset.order, BlockOrder)
        self._count = min(workers, dataset.rows) if self._by_rows else workers
        self._turns = 1 if self._by_rows else self._count  # batches until a worker's next one
        self._workers: list[_Worker] = []

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], list]:
        if not self._workers:
            self._start()
        parts = [worker.take(step) for worker in self._workers_of(step)]
        self._ask(step + self._turns * DEPTH)
        if len(parts) == 1:
            return parts[0]
        names = self._dataset.spec
        arrays = {name: np.concatenate([part[0][name] for part in parts]) for name in names}
        return arrays, [error for part in parts for error in part[1]]

    def _start(self):
        for number in range(self._count):
            dataset = self._dataset.share(number, self._count) if self._by_rows else self._dataset
            pickled = cloudpickle.dumps((dataset, self._threads))
            self._workers.append(_Worker(pickled, dataset.spec, number))
        for number in range(self._turns * DEPTH):
            self._ask(self._first + number)

    def _stop(self):
        for worker in self._workers:
            worker.close()

    def _workers_of(self, step: int) -> "list[_Worker]":
        if self._by_rows:
            return self._workers
        return [self._workers[(step - self._first) % self._count]]

    def _ask(self, step: int):
        place = (step - self._first) // self._turns % DEPTH
        for worker in self._workers_of(step):
            worker.ask(step, place)


class _SharedMemory:
    """Memory of two processes that has no name: no kill leaves it behind, no /dev/shm bounds it.

    It is inherited by a process that `multiprocessing` spawns with it among its arguments.
    """

    def __init__(self, size: int, descriptor: int | None = None):
        if descriptor is None:
            if hasattr(os, "memfd_create"):
                descriptor = os.memfd_create("clip_jax", os.MFD_CLOEXEC)
            else:
                with tempfile.TemporaryFile() as file:
                    descriptor = os.dup(file.fileno())
            os.ftruncate(descriptor, size)
        self._descriptor, self._size = descriptor, size
        self.buffer = mmap.mmap(descriptor, size)

    def __reduce__(self):
        return _attach, (self._size, reduction.DupFd(self._descriptor))

    def close(self):
        os.close(self._descriptor)
        with contextlib.suppress(BufferError):  # an array still looks into it: with the last one
            self.buffer.close()


def _attach(size: int, descriptor) -> _SharedMemory:
    return _SharedMemory(size, descriptor.detach())


class _Worker:
    """A process, its pipe, and the pieces of shared memory that it writes into."""

    def __init__(self, pickled: bytes, spec: Spec, number: int):
        self._pickled, self._spec, self._number = pickled, spec, number
        self._asked: deque[tuple[int, int]] = deque()  # step, and piece of memory for it
        size = sum(_size(*entry) for entry in spec.values())
        try:
            self._memory = [_SharedMemory(size) for _ in range(DEPTH)]
            self._progress = _SharedMemory(np.dtype(np.int64).itemsize)
        except OSError as error:
            raise ValueError(
                f"a data worker needs {DEPTH} x {size / 2**20:.0f} MiB of shared memory "
                f"({error.strerror}): lower data.workers or data.batch_size"
            ) from error
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
        raise ValueError(
            f"data worker {self._number} {end} {MAX_RESTARTS} times at batch {step}; -9 and -7 are "
            "often a want of memory. Lower data.workers, or set it to 0 to see what happens"
        )

    def close(self):
        """Stop the process and free the memory."""
        self._stop()
        for memory in (*self._memory, self._progress):
            memory.close()

    def _start(self):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        memory = (*self._memory, self._progress)
        self._process = context.Process(
            target=_work,
            args=(theirs, self._pickled, self._spec, memory, masks_logs()),
            name=f"{NAME}-{self._number}",
            daemon=True,
        )
        self._process.start()
        self._ready = False  # imports may take a minute on a busy machine
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
        done, quiet_s = self._rows_done(), 0.0
        try:
            while True:
                if self._pipe.poll(TICK_SECONDS):
                    if (reply := self._pipe.recv()) is not READY:
                        return reply
                    self._ready = True
                if self._rows_done() != done:
                    done, quiet_s = self._rows_done(), 0.0
                elif self._ready:
                    quiet_s += TICK_SECONDS
                if quiet_s > STALL_SECONDS:
                    logging.warning("Data worker %d hangs: no row for %g s.", self._number, quiet_s)
                    return None
        except (EOFError, OSError):
            return None

    def _rows_done(self) -> int:
        return int(np.frombuffer(self._progress.buffer, np.int64)[0])


def _size(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64


def _arrays(memory: _SharedMemory, spec: Spec) -> dict[str, np.ndarray]:
    """The arrays of a batch inside a piece of shared memory."""
    arrays, offset = {}, 0
    for name, (shape, dtype) in spec.items():
        arrays[name] = np.ndarray(shape, dtype, memory.buffer, offset)
        offset += _size(shape, dtype)
    return arrays


def _work(
    pipe: Connection, pickled: bytes, spec: Spec, shared: tuple[_SharedMemory, ...], masked: bool
):
    """What a process does: make the batches that it is asked for, until the pipe ends."""
    # These reach the whole group; the training process alone decides what they mean. SIGTERM is
    # how Python ends what is left at its own end.
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        if hasattr(signal, name):  # Windows has the first alone
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if masked:  # before anything can be logged
        redact_logs()
    dataset, threads = cloudpickle.loads(pickled)
    *memory, progress = shared
    done = _Counter(np.frombuffer(progress.buffer, np.int64))
    with ThreadPoolExecutor(threads) as pool, contextlib.suppress(EOFError, OSError):
        pipe.send(READY)
        while True:
            step, place = pipe.recv()
            try:
                bad, error = _fill(_arrays(memory[place], spec), dataset, step, pool, done), None
                dataset.release(step)
            except Exception as caught:
                bad, error = [], _portable(caught)
            pipe.send((step, bad, error))


class _Counter:
    """Rows that are done, where the training process sees them."""

    def __init__(self, value: np.ndarray):
        self._value, self._lock = value, threading.Lock()

    def add_one(self):
        with self._lock:
            self._value += 1


def _fill(
    arrays: dict[str, np.ndarray], dataset: TrainDataset, step: int, pool, done: _Counter
) -> list:
    def one(row: int) -> list:
        bad = fill(arrays, dataset, step, [row])
        done.add_one()
        return bad

    return [error for part in pool.map(one, range(dataset.rows)) for error in part]


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot be sent, one that says the same."""
    error.add_note("In a data worker:\n" + "".join(traceback.format_exception(error)))
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error

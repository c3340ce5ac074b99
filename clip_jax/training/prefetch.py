"""Batches put onto the devices by a thread, some ahead of the step that needs them."""

import queue
import threading
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.data.loader import Batches

ASK_S = 0.2  # between two looks at whether the run is to leave, while no batch comes


class Prefetch:
    """An iterator of global batches on the mesh. A context manager, which closes the batches.

    `bad_samples` are the counts up to the batch that was returned last, not up to what the thread has
    read ahead: so a run that resumes counts no sample twice.
    """

    def __init__(self, batches: Batches, mesh: Mesh, depth: int):
        self.bad_samples: dict = batches.bad_samples.to_json()
        self._batches, self._mesh = batches, mesh
        self._queue: queue.Queue = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Any:
        return self.take(leave=lambda: False)

    def take(self, *, leave: Callable[[], bool]) -> Any | None:
        """The next batch; None where there is none yet and nobody wants to wait for it any longer."""
        while True:
            try:
                item = self._queue.get(timeout=ASK_S)
                break
            except queue.Empty:
                if leave():
                    return None
        if isinstance(item, BaseException):
            raise item
        batch, self.bad_samples = item
        return batch

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *exc):
        self._stop.set()
        while self._thread.is_alive():  # it may be waiting for room
            self._drain()
            self._thread.join(timeout=0.05)
        self._drain()
        self._batches.close()

    def _drain(self):
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return

    def _fill(self):
        try:
            for batch in self._batches:
                on_devices = sharding.to_global(self._mesh, batch)
                self._put((on_devices, self._batches.bad_samples.to_json()))
                if self._stop.is_set():
                    return
            self._put(StopIteration())  # else who asks for one more would wait for ever
        except BaseException as error:  # it belongs to the thread that asks for the next batch
            self._put(error)

    def _put(self, item: Any):
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

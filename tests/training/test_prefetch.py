"""Batches on the devices ahead of their step: in order, with their own counts of bad samples, and no thread left."""

import threading
import types

import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import Batches
from clip_jax.data.samples import BadSample
from clip_jax.training.prefetch import Prefetch


class Numbered(Batches):
    """Batch k is full of k and one of its samples was bad. After the last one comes the error."""

    def __init__(self, last: int, *, first: int = 0, error: Exception | None = None):
        dataset = types.SimpleNamespace(samples=lambda arrays: 8)
        super().__init__(dataset, first, BadSamples(), lambda bad_samples: None)
        self._last, self._error = last, error
        self.fifth = threading.Event()  # set when batch 5 is asked for

    def _read(self, step):
        if step == 5:
            self.fifth.set()
        if step == self._last:
            raise self._error or StopIteration
        bad = [BadSample("torn", key=str(step), shard="s")]
        return {"image": np.full((8, 2), step), "tokens": np.full(8, step)}, bad

    def _stop(self):
        """It holds nothing."""


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_split_over_the_devices(mesh):
    on = mesh(4, 2)
    with Prefetch(Numbered(5, first=2), on, depth=2) as batches:
        found = list(batches)
    assert [int(batch["tokens"][0]) for batch in found] == [2, 3, 4]
    for leaf in found[0].values():
        assert leaf.sharding == sharding.batch_sharding(on)


def test_the_account_is_of_the_batches_given_and_not_of_those_read_ahead(mesh):
    source = Numbered(100)
    with Prefetch(source, mesh(1), depth=5) as batches:
        next(batches)
        next(batches)
        assert source.fifth.wait(timeout=30)  # the thread is ahead
        assert batches.bad_samples["seen"] == 2 * 8
        assert batches.bad_samples["bad"] == 2


def test_what_breaks_in_the_thread_is_raised_where_the_batch_is_asked_for(mesh):
    with Prefetch(Numbered(2, error=ValueError("too many are bad")), mesh(1), 2) as batches:
        next(batches)
        next(batches)
        with pytest.raises(ValueError, match="too many are bad"):
            next(batches)


def test_leaving_early_ends_the_thread_and_closes_the_batches(mesh):
    source = Numbered(1000)
    with Prefetch(source, mesh(1), depth=1) as batches:
        next(batches)  # now the thread waits for room
        assert threads()
    assert not threads()
    with pytest.raises(ValueError, match="closed"):
        next(source)


def test_who_is_to_leave_does_not_wait_for_a_batch_that_does_not_come(mesh):
    class Stalled(Numbered):
        def _read(self, step):
            gate.wait(20)
            return super()._read(step)

    gate, asked = threading.Event(), []
    with Prefetch(Stalled(3), mesh(1), depth=1) as batches:
        assert batches.take(leave=lambda: bool(asked.append(0) or len(asked) == 2)) is None
        assert len(asked) == 2
        gate.set()
        assert int(batches.take(leave=lambda: False)["tokens"][0]) == 0

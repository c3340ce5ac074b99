"""Batches on the devices ahead of their step: in order, with their own account, and no thread left."""

import threading

import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import Batches
from clip_jax.data.samples import BadSample
from clip_jax.training.prefetch import Prefetch


def numbered(last: int, *, first: int = 0, error: Exception | None = None):
    """Batch k is full of k and one of its samples was bad. After the last one comes the error."""
    fifth = threading.Event()

    def start(step):
        for number in range(step, last):
            if number == 5:
                fifth.set()
            bad = [BadSample("torn", key=str(number), shard="s")]
            yield {"image": np.full((8, 2), number), "tokens": np.full(8, number), "bad": bad}
        if error is not None:
            raise error

    batches = Batches(start, first, BadSamples(), lambda ledger: None)
    batches.fifth = fifth  # set when batch 5 is asked for
    return batches


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_split_over_the_devices(mesh):
    on = mesh(4, 2)
    with Prefetch(numbered(5, first=2), on, depth=2) as batches:
        found = list(batches)
    assert [int(batch["tokens"][0]) for batch in found] == [2, 3, 4]
    for leaf in found[0].values():
        assert leaf.sharding == sharding.batch_sharding(on)


def test_the_account_is_of_the_batches_given_and_not_of_those_read_ahead(mesh):
    source = numbered(100)
    with Prefetch(source, mesh(1), depth=5) as batches:
        next(batches)
        next(batches)
        assert source.fifth.wait(timeout=30)  # the thread is ahead
        assert batches.ledger["seen"] == 2 * 8
        assert batches.ledger["bad"] == 2


def test_what_breaks_in_the_thread_is_raised_where_the_batch_is_asked_for(mesh):
    with Prefetch(numbered(2, error=ValueError("too many are bad")), mesh(1), 2) as batches:
        next(batches)
        next(batches)
        with pytest.raises(ValueError, match="too many are bad"):
            next(batches)


def test_leaving_early_ends_the_thread_and_closes_the_batches(mesh):
    source = numbered(1000)
    with Prefetch(source, mesh(1), depth=1) as batches:
        next(batches)  # now the thread waits for room
        assert threads()
    assert not threads()
    with pytest.raises(ValueError, match="closed"):
        next(source)

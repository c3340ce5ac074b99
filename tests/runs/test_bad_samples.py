"""Each process's counts of bad samples, into a checkpoint and out of it."""

import pytest

from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.samples import BadSample
from clip_jax.distributed.multihost import allgather_json
from clip_jax.runs import bad_samples
from clip_jax.runs.bad_samples import own_counts


def counts_of(process: int) -> dict:
    bad_samples = BadSamples()
    bad = BadSample("torn", key=f"k{process}", shard=f"shard-{process}")
    bad_samples.record(100, [bad] * (process + 1))
    return bad_samples.to_json()


@pytest.fixture
def processes(monkeypatch):
    """`processes(index, count)` makes this process one of several."""

    def make(index: int, count: int):
        monkeypatch.setattr(bad_samples.jax, "process_index", lambda: index)
        monkeypatch.setattr(bad_samples.jax, "process_count", lambda: count)

    return make


def test_each_process_gets_its_own_account_back(processes):
    for index in range(3):
        processes(index, 3)
        assert own_counts([counts_of(0), counts_of(1), counts_of(2)]) == counts_of(index)


def test_with_other_processes_the_first_goes_on_with_the_sum(processes):
    processes(0, 2)
    total = own_counts([counts_of(0), None, counts_of(2)])
    assert (total["seen"], total["bad"]) == (200, 4)
    assert total["by_reason"] == {"torn": 4}
    assert total["worst_shards"] == {"torn": {"shard-0": 1, "shard-2": 3}}
    processes(1, 2)
    assert own_counts([counts_of(0), None, counts_of(2)]) is None


def test_one_process_gathers_its_own():
    assert allgather_json(counts_of(0)) == [counts_of(0)]

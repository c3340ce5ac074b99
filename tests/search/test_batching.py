"""Queries that come together give what each gives alone, and a wrong one fails alone."""

import asyncio
import threading
import time

import numpy as np
import pytest

import clip_jax.search
from clip_jax.search import batching
from clip_jax.search.batching import Batcher, Query
from clip_jax.search.filters import Condition
from clip_jax.search.queries import Part


class Encode:
    """Texts are seeds of vectors; counts the batches."""

    def __init__(self, index):
        self.index, self.batches = index, []

    def vectors(self, parts):
        self.batches.append(len(parts))
        return [
            self.index.vectors.take(np.array([part.value]))[0]
            if part.kind == "row"
            else np.random.default_rng(len(part.value)).normal(size=32).astype(np.float32)
            for part in parts
        ]


@pytest.fixture
def index(embeddings):
    return clip_jax.search.open(embeddings)


QUERIES = [
    Query((Part("text", "a"),), 5),
    Query((Part("row", 7), Part("text", "bbb", -0.5)), 9),
    Query((Part("row", 4000),), 5),
    Query((Part("row", 3), Part("row", 3, -1.0)), 5),
    Query((Part("text", "cc"),), 4, (Condition("label", "=", 3),)),
    Query((Part("text", "cc"),), 4, (Condition("colour", "=", 3),)),
    Query((Part("row", 1199),), 1),
    Query((Part("row", 1200),), 1),
    Query((Part("text", "cc"),), 4, (Condition("label", "=", 2),)),
    Query((Part("text", "cc"),), 4, (Condition("label", "=", 3), Condition("caption", "~", "7"))),
]


def test_together_is_as_alone(index):
    encode = Encode(index)
    batcher = Batcher(index, encode)
    together = batcher.search_now(QUERIES)
    alone = [batcher.search_now([query])[0] for query in QUERIES]
    assert encode.batches[0] == sum(len(query.parts) for query in QUERIES) - 2
    for one, other in zip(together, alone):
        if isinstance(one, Exception):
            assert str(one) == str(other)
        else:
            np.testing.assert_array_equal(one.row_QK, other.row_QK)
    assert [type(one).__name__ for one in together] == [
        "Found", "Found", "IndexError", "ValueError", "Found", "ValueError", "Found", "IndexError",
        "Found", "Found",
    ]  # fmt: skip
    assert (together[4].row_QK % 5 == 3).all() and (together[8].row_QK % 5 == 2).all()
    assert all(row % 5 == 3 and "7" in str(row) for row in together[9].row_QK.tolist())
    assert together[6].row_QK.tolist() == [1199]
    row_E, text_E = encode.vectors(QUERIES[1].parts)
    expected_K = index.search(row_E - 0.5 * text_E, 9).row_QK
    np.testing.assert_array_equal(together[1].row_QK, expected_K)
    assert [len(one.row_QK) for one in together[:2]] == [5, 9]


def test_concurrent_requests_share_batches(index):
    encode = Encode(index)

    async def run():
        async with Batcher(index, encode) as batcher:
            queries = [Query((Part("row", row),), 3) for row in range(20)]
            found = await asyncio.gather(*(batcher.search(query) for query in queries))
            with pytest.raises(IndexError):
                await batcher.search(QUERIES[2])
            return [one.row_QK[0] for one in found]

    assert asyncio.run(run()) == list(range(20))
    assert len(encode.batches) < 20


def test_a_device_that_fails_fails_its_batch_and_not_the_next(index):
    encode = Encode(index)
    vectors, failing = encode.vectors, [True]

    def fail_once(parts):
        if failing.pop() if failing else False:
            raise RuntimeError("out of memory")
        return vectors(parts)

    encode.vectors = fail_once

    async def run():
        async with Batcher(index, encode) as batcher:
            with pytest.raises(RuntimeError, match="out of memory"):
                await batcher.search(QUERIES[0])
            return await batcher.search(QUERIES[6])

    assert asyncio.run(run()).row_QK.tolist() == [1199]


def test_clients_that_leave_fail_nobody_and_those_that_wait_are_not_searched_for(index):
    encode = Encode(index)
    vectors, begun, held = encode.vectors, threading.Event(), threading.Event()

    def hold(parts):
        begun.set()
        assert held.wait(20)
        return vectors(parts)

    encode.vectors = hold

    async def run():
        async with Batcher(index, encode) as batcher:
            searched = asyncio.create_task(batcher.search(QUERIES[0]))
            await asyncio.to_thread(begun.wait, 20)
            waiting = [asyncio.create_task(batcher.search(QUERIES[1])) for _ in range(3)]
            await asyncio.sleep(0)
            for left in (searched, *waiting):
                left.cancel()
            await asyncio.sleep(0)
            held.set()
            return await asyncio.wait_for(batcher.search(QUERIES[6]), 20)

    assert asyncio.run(run()).row_QK.tolist() == [1199]
    assert encode.batches == [1, 1]


def test_a_text_where_there_is_no_tokenizer_fails_alone(index):
    encode = Encode(index)
    vectors = encode.vectors

    def no_tokenizer(parts):
        if any(part.kind == "text" for part in parts):
            raise ValueError("no tokenizer")
        return vectors(parts)

    encode.vectors = no_tokenizer
    text, row = Batcher(index, encode).search_now([QUERIES[0], QUERIES[6]])
    assert str(text) == "no tokenizer" and row.row_QK.tolist() == [1199]


def test_clients_that_ask_again_at_once_are_one_batch(index, monkeypatch):
    """Else they stay in two groups, of which each waits for the other's batch."""
    monkeypatch.setattr(batching, "REJOIN_S", 0.5)
    encode = Encode(index)

    async def ask(batcher, row: int, first_s: float):
        await asyncio.sleep(first_s)
        for _ in range(6):
            await batcher.search(Query((Part("row", row),), 3))

    async def run():
        async with Batcher(index, encode) as batcher:
            vectors = encode.vectors
            encode.vectors = lambda parts: time.sleep(0.02) or vectors(parts)
            await asyncio.gather(*(ask(batcher, row, 0.01 * (row % 2)) for row in range(6)))

    asyncio.run(run())
    assert encode.batches[2:-2] and all(size == 6 for size in encode.batches[2:-2])


def test_a_lone_client_is_not_waited_for(index, monkeypatch):
    monkeypatch.setattr(batching, "REJOIN_S", 30.0)

    async def run():
        async with Batcher(index, Encode(index)) as batcher:
            for row in range(3):
                await asyncio.wait_for(batcher.search(Query((Part("row", row),), 3)), 20)

    asyncio.run(run())

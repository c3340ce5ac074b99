"""Queries of many clients, searched together: what comes while the device works is its next batch."""

import asyncio
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from clip_jax.search.exact import Found
from clip_jax.search.filters import Condition, allowed
from clip_jax.search.index import SearchIndex
from clip_jax.search.queries import Part, QueryEncoder, combine

MOST = 32  # queries in a batch
# Seconds after a batch in which those that it answered are waited for: clients that ask again at once
# would else go in two groups, of which each waits for the other. Writing eight answers takes half of it.
REJOIN_S = 0.01
REMEMBERED = 16  # filters, of one byte a row each


class Query(NamedTuple):
    """What is searched for: parts with weights, among the rows that satisfy the conditions."""

    parts: tuple[Part, ...]
    k: int
    conditions: tuple[Condition, ...] = ()


class Batcher:
    """Searches for queries, those that wait together at once. Start it in an event loop.

    One thread uses the device. A query that cannot be searched for fails alone.
    """

    def __init__(self, index: SearchIndex, encode: QueryEncoder):
        self._index, self._encode = index, encode
        self._waiting: asyncio.Queue = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._task: asyncio.Task | None = None
        self._allowed = functools.lru_cache(REMEMBERED)(self._mask)

    async def __aenter__(self) -> "Batcher":
        self._task = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *exc):
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(cancel_futures=True)

    async def search(self, query: Query) -> Found:
        """The rows nearest to a query; see `SearchIndex.search`.

        Raises:
          ValueError, IndexError: the query cannot be searched for.
        """
        answer = asyncio.get_running_loop().create_future()
        await self._waiting.put((query, answer))
        return await answer

    async def _serve(self):
        loop, clients, until = asyncio.get_running_loop(), 0, 0.0
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < min(MOST, clients) and (left := until - loop.time()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self._waiting.get(), left))
                except TimeoutError:
                    break
            while len(batch) < MOST and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            batch = [(query, answer) for query, answer in batch if not answer.cancelled()]
            queries = [query for query, _ in batch]
            try:
                results = await loop.run_in_executor(self._thread, self.search_now, queries)
            except Exception as error:  # of the device: it belongs to all that were in the batch
                results = [error] * len(batch)
            for (_, answer), result in zip(batch, results):
                if answer.cancelled():
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
            clients, until = len(batch) + self._waiting.qsize(), loop.time() + REJOIN_S

    def search_now(self, queries: Sequence[Query]) -> list[Found | Exception]:
        """The results of some queries, or why there are none."""
        results: list[Found | Exception] = [ValueError("not searched")] * len(queries)
        rows = len(self._index)
        usable = []
        for place, query in enumerate(queries):
            wrong = [p.value for p in query.parts if p.kind == "row" and not 0 <= p.value < rows]
            if wrong:
                results[place] = IndexError(f"there is no row {wrong[0]}: there are {rows:_}")
            else:
                usable.append(place)
        try:
            vectors = iter(self._encode.vectors([p for at in usable for p in queries[at].parts]))
        except ValueError as error:  # of one of them, such as a text where there is no tokenizer
            if len(queries) == 1:
                return [error]
            return [self.search_now([query])[0] for query in queries]
        plain: dict[int, np.ndarray] = {}
        for place in usable:
            query = queries[place]
            own = [next(vectors) for _ in query.parts]
            try:
                z_E = combine(query.parts, own)
                if query.conditions:
                    mask_N = self._allowed(query.conditions)
                    results[place] = self._index.search(z_E, query.k, allowed_N=mask_N)
                else:
                    plain[place] = z_E
            except ValueError as error:
                results[place] = error
        if plain:
            most = max(queries[place].k for place in plain)
            found = self._index.search(np.stack(list(plain.values())), most)
            for number, place in enumerate(plain):
                k = queries[place].k
                results[place] = Found(found.score_QK[number, :k], found.row_QK[number, :k])
        return results

    def _mask(self, conditions: tuple[Condition, ...]) -> np.ndarray:
        return allowed(self._index.table, conditions)

"""How fast a storage behind a URL answers: latency, bandwidth of a connection and of all of them."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from clip_jax import storage
from clip_jax.data.block_cache import Span
from clip_jax.data.block_reader import CONNECTIONS, PART_BYTES
from clip_jax.data.samples import BadSample, Sample, Source

LATENCIES = 7  # small requests, after one that opens the connection
PIECES = 3  # long requests on one connection
MOST_BYTES = 64_000_000  # of the piece whose samples are decoded


@dataclass(frozen=True)
class Link:
    """What was measured; bytes are per second."""

    latency_s: float  # until the answer to a small request
    connection: float  # bandwidth of one connection
    together: float  # of all connections
    connections: int
    sample_bytes: float
    request_bytes: float  # that a block, or a part of one, has

    @property
    def request_s(self) -> float:
        """Seconds that a request for a block takes on a connection of its own."""
        return self.latency_s + self.request_bytes / self.connection

    @property
    def request_samples(self) -> float:
        """Samples that one request brings."""
        return self.request_bytes / self.sample_bytes

    @property
    def images_per_second(self) -> float:
        """Samples a second in blocks, on all connections."""
        waiting = self.connections * self.request_bytes / self.request_s
        return min(waiting, self.together) / self.sample_bytes

    @property
    def one_by_one(self) -> float:
        """Samples a second of one thread that asks for each sample, as a global order does."""
        return 1 / (self.latency_s + self.sample_bytes / self.connection)

    @property
    def limit(self) -> str:
        """Whether requests wait, or bytes."""
        waits = self.latency_s > self.request_bytes / self.connection
        used = self.images_per_second * self.sample_bytes
        return "latency" if waits and used < self.together else "bandwidth"

    def connections_for(self, images_per_second: float) -> int:
        """Connections that bring so many samples a second, if the line is wide enough."""
        return int(np.ceil(images_per_second / self.request_samples * self.request_s))


def is_remote(source: Source) -> bool:
    """Whether its blocks come from far away."""
    return getattr(source, "remote", False) and getattr(source, "blocks", None) is not None


def measure(source, *, seconds: float, seed: int = 0) -> tuple[Link, float, list[Sample]]:
    """The storage of a source in blocks, processor seconds of reading a sample, and some samples."""
    first_K, rng = source.blocks.first_K, np.random.default_rng(seed)

    def some() -> tuple[int, int, Span]:
        block = int(rng.integers(len(first_K) - 1))
        start, end = first_K[block : block + 2].tolist()
        return start, end, source.span(start, end)

    spans = [some()[2] for _ in range(64)]
    size = float(np.mean([span.end - span.start for span in spans]))
    samples = float(np.mean(np.diff(first_K)))
    parts = max(1, int(size // PART_BYTES))
    latency_s = _latency(spans)
    connection = _connection(spans, latency_s)
    wide = _together(spans, seconds)
    link = Link(
        latency_s=latency_s,
        connection=connection,
        together=max(wide, connection),
        connections=CONNECTIONS,
        sample_bytes=size / samples,
        request_bytes=size / parts,
    )
    cpu_s, found = _read(source, some)
    return link, cpu_s, found


def _latency(spans: list[Span]) -> float:
    def ask(span: Span) -> float:
        return _timed(lambda: _get(span, span.start, span.start + 1))

    ask(spans[0])  # opens the connection, and learns the file's version where that is asked for
    return statistics.median(ask(spans[0]) for _ in range(LATENCIES))


def _connection(spans: list[Span], latency_s: float) -> float:
    rates = []
    for span in spans[:PIECES]:
        end = min(span.end, span.start + PART_BYTES)
        taken = _timed(lambda span=span, end=end: _get(span, span.start, end))
        rates.append((end - span.start) / max(taken - latency_s, 1e-3))
    return statistics.median(rates)


def _together(spans: list[Span], seconds: float) -> float:
    """Bytes a second of as many connections as training has, each of which reads for so long."""
    start = time.perf_counter()

    def work(number: int) -> int:
        done = 0
        while time.perf_counter() - start < seconds:
            span = spans[number % len(spans)]
            end = min(span.end, span.start + PART_BYTES // 4)
            done += len(_get(span, span.start, end))
            number += CONNECTIONS // 2 + 1
        return done

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        total = sum(pool.map(work, range(CONNECTIONS)))
    return total / (time.perf_counter() - start)


def _read(source, some: Callable) -> tuple[float, list[Sample]]:
    """Processor seconds, of all threads, to read a sample with its block; and the samples."""
    start, end, span = some()
    for _ in range(16):  # one that is not too long, if there is any
        if span.end - span.start <= MOST_BYTES:
            break
        start, end, span = some()
    before, found = time.process_time(), []
    run = source.unpack(start, end, _get(span, span.start, span.end))
    for number in range(start, end):
        try:
            found.append(run[number])
        except BadSample:
            continue
    return (time.process_time() - before) / max(1, end - start), found


def _get(span: Span, start: int, end: int) -> bytes:
    return storage.read_range(span.path, start, end, info=span.info)


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start

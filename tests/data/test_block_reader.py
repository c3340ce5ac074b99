"""Blocks are read ahead: the same batches however they are read, within bounds of memory and requests."""

import hashlib
import json
import threading
import types

import numpy as np
import pytest

from clip_jax import storage
from clip_jax.data import block_order
from clip_jax.data.block_cache import BlockCache, Span
from clip_jax.data.block_order import BlockOrder
from clip_jax.data.block_reader import BlockReader
from clip_jax.data.dataset import TrainDataset
from clip_jax.data.loader import train_batches
from clip_jax.data.orders import make_order
from clip_jax.data.sources.registry import open_source
from clip_jax.data.workers import WorkerBatches

STEPS = 8


def digest(batch):
    return hashlib.sha256(batch["image"].tobytes() + batch["tokens"].tobytes()).hexdigest()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(block_order, "BLOCK_BYTES", (6_000, 6_000))
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def many(tmp_path, write_tar, encode):
    """Four shards of forty samples, in blocks of two or so."""
    folder = tmp_path / "many"
    folder.mkdir()
    for shard in range(4):
        files = {}
        for number in range(shard * 40, shard * 40 + 40):
            files[f"{number:05d}.png"] = encode((0, number, 0))
            files[f"{number:05d}.json"] = json.dumps({"caption": f"c{number}"}).encode()
        write_tar(folder / f"{shard:05d}.tar", files)
    return folder


@pytest.fixture
def read(reading, settings, many):
    """Digests of batches, with changes of how they are read."""

    def _read(*, start=0, steps=STEPS, process=(0, 1), **changes):
        changes = {"shuffle": "block", "batch_size": 16, "shuffle_window_mb": 1} | changes
        cfg = settings(**changes)
        url = f"tar:file://{many}/*.tar" if cfg.shuffle == "auto" else f"tar:{many}/*.tar"
        source = open_source(url, "train", cfg)
        rank, count = process
        options = {"cfg": cfg, "seed": 0, "start_step": start, **reading}
        with train_batches(source, process_index=rank, process_count=count, **options) as batches:
            return [next(batches) for _ in range(steps)]

    return _read


@pytest.fixture
def reference(read):
    return [digest(batch) for batch in read()]


def test_blocks_are_the_order_behind_urls_alone(read, reference):
    assert [digest(batch) for batch in read(shuffle="auto")] == reference
    assert [digest(batch) for batch in read(shuffle="global")] != reference


def test_worker_processes_share_the_rows_and_change_nothing(read, reference):
    found = read(workers=3, threads=1, start=2, steps=STEPS - 2)
    assert [digest(batch) for batch in found] == reference[2:]


def test_workers_have_whole_lanes_and_all_rows_and_the_memory_of_one_process(
    many, settings, reading
):
    cfg = settings(shuffle="block", batch_size=48, shuffle_window_mb=1)
    source = open_source(f"tar:{many}/*.tar", "train", cfg)
    dataset = TrainDataset([source], cfg=cfg, seed=0, process_index=0, process_count=1, **reading)
    each = 48 // dataset.order.lanes
    assert each > 1
    for workers in (3, 5, 40):
        parts = [dataset.share(number, workers) for number in range(workers)]
        rows = [row for part in parts for row in range(part._first, part._first + part.rows)]
        assert rows == list(range(48))
        assert all(part._first % each == 0 for part in parts) or workers * each > 48
        assert sum(part._memory for part in parts) <= dataset._memory
    options = {"threads": 1, "bad_samples": None, "check": None}
    assert WorkerBatches(dataset.share(0, 24), 0, workers=3, **options)._count == 2


def test_the_window_is_in_megabytes_of_blocks(settings):
    source = types.SimpleNamespace(blocks=block_order.Blocks(np.arange(0, 10_001, 10), 2e6))
    order = make_order([source], settings(shuffle="block", shuffle_window_mb=400), seed=0)
    assert order.window_blocks == 200


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_together_make_the_same_batches(read, reference, hosts):
    parts = [read(process=(host, hosts), steps=3) for host in range(hosts)]
    for step in range(3):
        whole = {name: np.concatenate([part[step][name] for part in parts]) for name in ("image", "tokens")}  # fmt: skip
        assert digest(whole) == reference[step]


def test_any_start_and_a_cache_change_nothing(read, reference, settings):
    for start in (0, 1, 5):
        found = [digest(batch) for batch in read(start=start, steps=2, cache_mb=1)]
        assert found == reference[start : start + 2]


class Recorded:
    """Samples that are numbers, in bytes that say which they are."""

    def __init__(self, samples, size=1000):
        self.samples, self.size, self.spans = samples, size, []
        self.info = storage.FileInfo(samples * size, "")

    def span(self, start, end):
        return Span("nowhere", start * self.size, end * self.size, self.info)

    def unpack(self, start, end, data):
        assert len(data) == (end - start) * self.size
        self.spans.append((start, end))
        return {index: index for index in range(start, end)}


@pytest.fixture
def opened(monkeypatch):
    """(samples, ...) -> source, order and reader over blocks of ten samples."""
    monkeypatch.setattr(storage, "read_range", lambda path, start, end, info: bytes(end - start))
    readers = []

    def _open(samples=3000, *, rows=range(16), step=0, memory=10**9, **changes):
        first_K = np.arange(0, samples + 1, 10)
        blocks = block_order.Blocks(first_K, 10_000.0)
        order = BlockOrder([blocks], batch_size=16, window=640_000, seed=0, **changes)
        source = Recorded(samples)
        reader = BlockReader([source], order, rows, step, memory=memory)
        readers.append(reader)
        return source, order, reader

    yield _open
    for reader in readers:
        reader.close()


def train(order, reader, rows, first, last):
    for step in range(first, last):
        found = order.rows(step * 16 + np.array(rows))
        for source, index, epoch, stream, window in zip(*(each.tolist() for each in found)):
            assert reader.sample(step, source, index, (stream, epoch, window)) == index
        reader.done(step)


def test_every_byte_is_read_once_an_epoch_whatever_the_hosts(opened):
    total = 0
    for host in range(4):
        rows = range(host * 4, host * 4 + 4)
        source, order, reader = opened(samples=3200, rows=rows)
        train(order, reader, rows, 0, 200)
        reader.close()
        total += sum(min(end, 3200) - start for start, end in source.spans)
    # What was read ahead of the second epoch is not of the first.
    ahead = 4 * reader.most_used / 1000
    assert 3200 <= total <= 3200 + ahead


def test_memory_is_bounded_and_flat(opened, monkeypatch):
    monkeypatch.setattr("clip_jax.data.block_reader.SPARE", 0)
    _, order, reader = opened(memory=10**9)
    share = order.lanes * order.lane_blocks * 10_000
    train(order, reader, range(16), 0, 400)
    assert reader.most_used <= 2.5 * share
    assert reader._used <= reader.most_used


def test_starting_late_reads_no_more_than_its_windows(opened, monkeypatch):
    monkeypatch.setattr("clip_jax.data.block_reader.SPARE", 0)
    source, order, reader = opened(step=100)
    train(order, reader, range(16), 100, 101)
    reader.close()
    share = order.lanes * order.lane_blocks * 10
    assert sum(end - start for start, end in source.spans) <= 3 * share


def test_too_little_memory_is_refused_with_the_settings(opened):
    with pytest.raises(ValueError, match=r"data\.read_ahead_mb.*data\.shuffle_window_mb"):
        opened(memory=50_000)


def test_a_step_out_of_order_is_read_all_the_same(opened):
    _, order, reader = opened(step=50)
    train(order, reader, range(16), 50, 51)
    found = order.rows(np.arange(16))  # of step 0, which is past
    for source, index, epoch, stream, window in zip(*(each.tolist() for each in found)):
        assert reader.sample(0, source, index, (stream, epoch, window)) == index


@pytest.fixture
def span():
    return Span("gs://bucket/1.tar", 0, 4000, storage.FileInfo(10_000, "v1"))


def test_the_cache_gives_back_what_was_put_and_nothing_else(tmp_path, span):
    cache = BlockCache(tmp_path, 100_000)
    assert cache.get(span) is None
    cache.put(span, b"x" * 4000)
    assert cache.get(span) == b"x" * 4000
    assert cache.get(span._replace(info=storage.FileInfo(10_000, "v2"))) is None
    (file,) = tmp_path.iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[17] ^= 1
    file.write_bytes(damaged)
    assert cache.get(span) is None and not list(tmp_path.iterdir())


def test_the_cache_stays_below_its_limit_and_keeps_what_was_used(tmp_path, span):
    caches = [BlockCache(tmp_path, 40_000) for _ in range(2)]  # as two processes have them
    for place in range(60):
        caches[place % 2].put(span._replace(start=place * 10, end=place * 10 + 1000), bytes(1000))
        caches[0].get(span._replace(start=0, end=1000))
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 40_000
    assert caches[0].get(span._replace(start=0, end=1000)) is not None


def test_a_folder_that_cannot_be_written_costs_the_cache_alone(tmp_path, span):
    cache = BlockCache(tmp_path / "file" / "x", 40_000)
    (tmp_path / "file").write_text("no folder")
    cache.put(span, bytes(4000))
    assert cache.get(span) is None


def test_stand_ins_of_bad_samples_are_the_same_over_any_hosts(
    many, settings, reading, write_tar, encode
):
    files = {}
    for number in range(40):
        files[f"{number:05d}.png"] = encode((0, number, 0)) if number % 4 else b"no picture"
        files[f"{number:05d}.json"] = json.dumps({"caption": f"c{number}"}).encode()
    write_tar(many / "00000.tar", files)
    cfg = settings(shuffle="block", batch_size=16, max_bad_share=0.5)
    source = open_source(f"tar:{many}/*.tar", "train", cfg)
    found = []
    for host in ((0, 1), (0, 2), (1, 2)):
        with train_batches(source, cfg=cfg, seed=0, process_index=host[0], process_count=host[1], **reading) as batches:  # fmt: skip
            found.append([next(batches)["image"] for _ in range(10)])
            assert batches.bad_samples.bad > 0
    for whole, *halves in zip(*found):
        np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_closing_leaves_no_thread(opened):
    _, order, reader = opened()
    train(order, reader, range(16), 0, 2)
    reader.close()
    for thread in threading.enumerate():
        if thread.name.startswith("blocks"):
            thread.join(5)
            assert not thread.is_alive()


def test_a_whole_shard_is_read_in_parts_that_give_the_same_batches(read, many, monkeypatch):
    (many / "sizes.json").write_text(json.dumps({f"{shard:05d}.tar": 40 for shard in range(4)}))
    expected = [digest(batch) for batch in read(index="never")]
    asked, plain = [], storage.read_range

    def record(path, start, end, *, info=None):
        asked.append((path, start, end))
        return plain(path, start, end, info=info)

    monkeypatch.setattr(storage, "read_range", record)
    monkeypatch.setattr("clip_jax.data.block_reader.PART_BYTES", 20_000)
    for _ in range(2):  # the second time from the cache
        assert [digest(batch) for batch in read(index="never", cache_mb=1)] == expected
        parts = [end - start for path, start, end in asked if path.endswith("00002.tar")]
        size = (many / "00002.tar").stat().st_size
        assert sum(parts) % size == 0 and max(parts) < 40_000 < size


def test_a_part_that_fails_is_the_failure_of_its_shard(read, many, monkeypatch):
    (many / "sizes.json").write_text(json.dumps({f"{shard:05d}.tar": 40 for shard in range(4)}))
    plain = storage.read_range

    def fail(path, start, end, *, info=None):
        if start and path.endswith("00002.tar"):
            raise OSError(f"{path} cannot be read")
        return plain(path, start, end, info=info)

    monkeypatch.setattr(storage, "read_range", fail)
    monkeypatch.setattr("clip_jax.data.block_reader.PART_BYTES", 20_000)
    with pytest.raises(OSError, match=r"00002\.tar cannot be read"):
        read(index="never")

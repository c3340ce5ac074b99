"""Shards in a bucket are opened without a pass over their bytes, and an index of them is built once by all."""

import json
import threading

import fsspec
import pytest

from clip_jax import storage
from clip_jax.data.samples import BadSample
from clip_jax.data.sources import tar, tar_index, tar_parts, tar_scan
from clip_jax.data.sources.registry import index_source, open_source

BUCKET = "memory://counts"


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr(storage, "LISTING_S", 0.0)


@pytest.fixture
def bucket(shards):
    """fsspec's file system in memory with the shards in it, which stands for a bucket."""
    filesystem = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        filesystem.pipe_file(f"/counts/{path.name}", path.read_bytes())
    yield filesystem
    filesystem.rm("/counts", recursive=True)


@pytest.fixture
def requests(monkeypatch):
    """What is asked of the file system in memory: names of calls and paths."""
    asked, kind = [], type(fsspec.filesystem("memory"))
    for name in ("ls", "info", "cat_file"):
        method = getattr(kind, name)

        def record(self, path, *arguments, name=name, method=method, **options):
            asked.append((name, path))
            return method(self, path, *arguments, **options)

        monkeypatch.setattr(kind, name, record)
    return asked


def texts(source):
    return [source[index].captions[0] for index in range(len(source))]


def _stats(bucket):
    for shard in range(3):
        content = json.dumps({"count": 12, "successes": 10}).encode()
        bucket.pipe_file(f"/counts/{shard:05d}_stats.json", content)


def _sizes(bucket):
    sizes = {f"{shard:05d}.tar": 10 for shard in range(3)}
    bucket.pipe_file("/counts/sizes.json", json.dumps(sizes).encode())


def _parquet(bucket):
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in range(3):
        file = io.BytesIO()
        pq.write_table(pa.table({"status": ["success"] * 10 + ["failed_to_download"] * 2}), file)
        bucket.pipe_file(f"/counts/{shard:05d}.parquet", file.getvalue())


@pytest.mark.parametrize("write", [_stats, _sizes, _parquet])
def test_counts_beside_the_shards_stand_for_an_index(bucket, shards, settings, write, monkeypatch):
    write(bucket)
    scanned = []
    scan = tar_scan.scan
    monkeypatch.setattr(tar, "open_index", lambda *arguments: pytest.fail("opened"))
    monkeypatch.setattr(tar_scan, "scan", lambda *a, **k: scanned.append(a[0]) or scan(*a, **k))
    source = open_source(f"tar:{BUCKET}/*.tar", "train", settings())
    assert len(source) == 30 and len(scanned) == 1  # of one, the first bytes were looked at
    monkeypatch.undo()
    indexed = open_source(f"tar:{shards}/*.tar", "train", settings())
    assert texts(source) == texts(indexed)
    assert [source[i].key for i in (0, 17)] == [indexed[i].key for i in (0, 17)]
    assert source.blocks.first_K.tolist() == [0, 10, 20, 30]
    assert source.fingerprint == indexed.fingerprint
    assert bucket.exists("/counts/sizes.json")  # for the next host


def test_a_start_asks_for_no_shard(bucket, settings, requests):
    _sizes(bucket)
    bucket.pipe_file("/counts/00001.tar", bucket.cat_file("/counts/00000.tar"))
    for number in range(3, 200):
        bucket.pipe_file(f"/counts/{number:05d}.tar", bucket.cat_file("/counts/00000.tar"))
    sizes = {f"{number:05d}.tar": 10 for number in range(200)}
    bucket.pipe_file("/counts/sizes.json", json.dumps(sizes).encode())
    requests.clear()
    source = open_source(f"tar:{BUCKET}/*.tar", "train", settings())
    assert len(source) == 2000
    assert len(requests) < 20 and sum(name == "ls" for name, _ in requests) <= 4


@pytest.mark.parametrize("counted", [9, 12])
def test_a_wrong_count_costs_bad_samples_or_is_named_and_never_a_wrong_sample(
    bucket, settings, counted, caplog
):
    sizes = {"00000.tar": 10, "00001.tar": counted, "00002.tar": 10}
    bucket.pipe_file("/counts/sizes.json", json.dumps(sizes).encode())
    source = open_source(f"tar:{BUCKET}/*.tar", "train", settings())
    found = []
    for index in range(len(source)):
        try:
            found.append(source[index].captions[0])
        except BadSample as error:
            found.append(error.reason)
    right = [f"text {number}" for number in range(30)]
    middle = right[10:20][:counted] + ["not-in-shard"] * (counted - 10)
    assert found == right[:10] + middle + right[20:]
    assert f"00001.tar has 10 samples and should have {counted}" in caplog.text


@pytest.mark.parametrize(
    "number",
    [
        "-5",
        "9.7",
        "true",
        "1e999",
        "NaN",
        "null",
        "[10]",
        "1000000",
        "9" * 30,
        pytest.param("[" * 100_000, id="deep"),
    ],
)
@pytest.mark.parametrize("kept", ["sizes.json", "_stats.json"])
def test_what_is_no_count_of_a_shard_is_named_and_not_used(bucket, settings, number, kept, caplog):
    if kept == "sizes.json":
        text = f'{{"00000.tar": 10, "00001.tar": {number}, "00002.tar": 10}}'
        bucket.pipe_file("/counts/sizes.json", text.encode())
    else:
        for shard in range(3):
            text = f'{{"successes": {number if shard == 1 else 10}}}'
            bucket.pipe_file(f"/counts/{shard:05d}_stats.json", text.encode())
    with pytest.raises(ValueError, match=r"data\.index=never.*sizes\.json"):
        open_source(f"tar:{BUCKET}/*.tar", "train", settings(index="never"))
    assert f"{kept} " in caplog.text and "not" in caplog.text
    assert len(open_source(f"tar:{BUCKET}/*.tar", "train", settings())) == 30  # by an index


def test_without_counts_never_is_refused_and_a_global_order_too(bucket, settings):
    with pytest.raises(ValueError, match=r"data\.index=never.*sizes\.json"):
        open_source(f"tar:{BUCKET}/*.tar", "train", settings(index="never"))
    _sizes(bucket)
    with pytest.raises(ValueError, match=r"data\.index=never needs data\.shuffle=block"):
        open_source(f"tar:{BUCKET}/*.tar", "train", settings(index="never", shuffle="global"))


def test_an_index_is_kept_beside_the_shards_and_found_by_other_hosts(
    bucket, settings, tmp_path, monkeypatch
):
    first = open_source(f"tar:{BUCKET}/*.tar", "train", settings())
    assert [name for name in bucket.ls("/counts", detail=False) if name.endswith(".parts")] == []
    monkeypatch.setattr(tar_scan, "scan", lambda *arguments: pytest.fail("read again"))
    monkeypatch.setattr(tar_index, "scan_here", lambda *arguments: pytest.fail("read again"))
    other = settings().__class__(data_dir=str(tmp_path / "other"))
    second = open_source(f"tar:{BUCKET}/*.tar", "train", other)
    assert texts(second) == texts(first)


def paths_and_infos():
    paths = [f"{BUCKET}/{shard:05d}.tar" for shard in range(3)]
    return list(zip(paths, storage.stat(paths)))


def together(folder, scan, host, found):
    pairs = paths_and_infos()
    parts = tar_parts.scan_together(pairs, folder, scan, threads=2, host=host)
    found[host[0]] = list(parts)


def test_hosts_share_the_shards_and_all_get_the_whole(bucket, monkeypatch):
    monkeypatch.setattr(tar_parts, "PART_SHARDS", 1)
    monkeypatch.setattr(tar_parts, "POLL_S", 0.01)
    scanned, found = [], {}

    def scan(shards):
        scanned.extend(path for path, _ in shards)
        return tar_scan.scan_here(shards)

    hosts = [
        threading.Thread(target=together, args=(f"{BUCKET}/parts", scan, (host, 3), found))
        for host in range(3)
    ]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join(20)
    assert sorted(scanned) == [path for path, _ in paths_and_infos()]  # each once
    assert [len(found[host]) for host in range(3)] == [3, 3, 3]
    expected = tar_scan.scan_here(paths_and_infos())
    for host in range(3):
        for (shard, starts), (right, right_starts) in zip(found[host], expected):
            assert shard == right and starts.tolist() == right_starts.tolist()


def test_a_host_that_is_gone_is_stood_in_for_and_a_restart_reads_nothing_again(bucket, monkeypatch):
    monkeypatch.setattr(tar_parts, "PART_SHARDS", 1)
    monkeypatch.setattr(tar_parts, "POLL_S", 0.01)
    monkeypatch.setattr(tar_parts, "WAIT_S", 0.02)
    scanned, found = [], {}

    def scan(shards):
        scanned.extend(path for path, _ in shards)
        if len(scanned) == 2:
            raise KeyboardInterrupt
        return tar_scan.scan_here(shards)

    with pytest.raises(KeyboardInterrupt):
        together(f"{BUCKET}/parts", scan, (0, 2), found)  # of two hosts, the other never comes
    together(f"{BUCKET}/parts", scan, (0, 2), found)
    assert len(found[0]) == 3 and len(scanned) == 4  # all once, and the one that was interrupted


def test_a_changed_shard_alone_is_read_again(bucket, settings, shards, monkeypatch):
    open_source(f"tar:{BUCKET}/*.tar", "train", settings())
    bucket.pipe_file("/counts/00001.tar", (shards / "00001.tar").read_bytes() + bytes(512))
    scanned, scan = [], tar_scan.scan
    monkeypatch.setattr(tar_scan, "scan", lambda *a, **k: scanned.append(a[0]) or scan(*a, **k))
    assert "30 samples" in index_source(f"tar:{BUCKET}/*.tar", settings())
    assert [path.rpartition("/")[2] for path in scanned] == ["00001.tar"]

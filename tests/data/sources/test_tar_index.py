"""The index is built once, is small, and refuses shards that have changed."""

import itertools
import json
import os
import pickle

import numpy as np
import pytest

from clip_jax import storage
from clip_jax.data.sources import tar_scan
from clip_jax.data.sources.patterns import expand
from clip_jax.data.sources.tar_index import build_index, open_index, places


@pytest.fixture
def paths(shards):
    return expand(str(shards / "{00000..00002}.tar"))


def test_it_costs_four_bytes_a_sample(paths, tmp_path):
    index = open_index(paths, tmp_path / "cache")
    footer = len(json.dumps({"shards": index.shards})) + 16
    assert len(index) == 30 and index.path.stat().st_size == 4 * 30 + footer
    assert isinstance(index.starts_N, np.memmap)


def test_it_lies_beside_the_shards_and_is_not_built_twice(paths, tmp_path, monkeypatch):
    index = open_index(paths, tmp_path / "cache")
    assert index.path.parent == tmp_path / "shards" and not (tmp_path / "cache").exists()
    monkeypatch.setattr(tar_scan, "scan", None)
    assert open_index(paths, tmp_path / "cache").shards == index.shards


def test_it_lies_in_the_cache_where_the_shards_folder_is_read_only(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "writable", lambda folder: False)
    index = open_index(paths, tmp_path / "cache")
    assert index.path.parent == tmp_path / "cache" / "indexes"
    assert open_index(paths, tmp_path / "cache").path == index.path


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_change_nothing(paths, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(tar_scan, "PARALLEL_FROM", 0)
    index = build_index(paths, tmp_path / "cache", workers=workers)
    located = [index.locate(number) for number in range(30)]
    assert [shard for shard, _, _ in located] == [number // 10 for number in range(30)]
    assert all(end == start for (_, _, end), (_, start, _) in itertools.pairwise(located[:10]))


def test_a_stale_index_is_refused_with_the_shard_by_name(paths, tmp_path, shards):
    open_index(paths, tmp_path / "cache")
    os.utime(shards / "00001.tar", (1, 1))
    with pytest.raises(ValueError, match=r"stale: 1 of 3 shards.*00001\.tar.*clip-jax data index"):
        open_index(paths, tmp_path / "cache")


def test_a_fresh_index_in_the_cache_is_taken_where_the_one_beside_is_stale(
    paths, tmp_path, shards, monkeypatch
):
    beside = open_index(paths, tmp_path / "cache").path
    os.utime(shards / "00001.tar", (1, 1))
    monkeypatch.setattr(storage, "writable", lambda folder: False)
    read, scan = [], tar_scan.scan
    monkeypatch.setattr(tar_scan, "scan", lambda path, info: read.append(path) or scan(path, info))
    build_index(paths, tmp_path / "cache", again=True)
    assert read == [str(shards / "00001.tar")]
    index = open_index(paths, tmp_path / "cache")
    assert index.path.parent == tmp_path / "cache" / "indexes" and beside.exists()
    os.utime(shards / "00001.tar", (2, 2))
    with pytest.raises(ValueError, match=r"shards/\.clip_jax_\w+\.tarindex is stale"):
        open_index(paths, tmp_path / "cache")


def test_building_again_reads_only_what_has_changed(
    paths, tmp_path, shards, write_tar, monkeypatch
):
    before = open_index(paths, tmp_path / "cache")
    write_tar(shards / "00001.tar", {"x.png": b"1", "x.txt": b"2"})
    read, scan = [], tar_scan.scan
    monkeypatch.setattr(tar_scan, "scan", lambda path, info: read.append(path) or scan(path, info))
    after = build_index(paths, tmp_path / "cache", again=True)
    assert read == [str(shards / "00001.tar")]
    assert len(after) == 21 and open_index(paths, tmp_path / "cache").shards == after.shards
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_stays_when_shards_are_moved(paths, tmp_path, shards):
    before = open_index(paths, tmp_path / "cache").fingerprint
    shards.rename(tmp_path / "elsewhere")
    moved = expand(str(tmp_path / "elsewhere" / "*.tar"))
    assert open_index(moved, tmp_path / "cache").fingerprint == before


def test_a_half_written_index_is_refused_by_name(paths, tmp_path):
    path = open_index(paths, tmp_path / "cache").path
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"tarindex is not a whole index; delete it"):
        open_index(paths, tmp_path / "cache")


def test_shards_of_other_folders_have_other_places(tmp_path):
    one, other = (places([str(tmp_path / name / "0.tar")], tmp_path) for name in "ab")
    assert not set(one) & set(other)
    urls = places(["s3://bucket/0.tar"], tmp_path)
    assert [path.parent for path in urls] == [tmp_path / "indexes"]


def test_a_copy_in_another_process_maps_the_same_file(paths, tmp_path):
    index = open_index(paths, tmp_path / "cache")
    copy = pickle.loads(pickle.dumps(index))
    assert len(pickle.dumps(index)) < 500
    assert copy.locate(17) == index.locate(17)


def test_a_shard_that_a_process_cannot_read_is_named(paths, tmp_path, monkeypatch, shards):
    monkeypatch.setattr(tar_scan, "PARALLEL_FROM", 0)
    infos = storage.stat(paths)
    monkeypatch.setattr(storage, "stat", lambda names: infos)
    (shards / "00001.tar").unlink()
    (shards / "00001.tar").mkdir()
    with pytest.raises(OSError, match=r"00001\.tar cannot be read, after 1 tries"):
        build_index(paths, tmp_path / "cache", workers=2)

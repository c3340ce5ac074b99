"""Converted data is the same data, and says so in its manifest."""

import json

import fsspec
import pytest
import xxhash

from clip_jax.data.sources.registry import index_source, open_source
from clip_jax.data.tools import convert as conversion
from clip_jax.data.tools.convert import convert


@pytest.mark.parametrize("workers", [1, 2])
def test_tar_shards_become_records_with_the_same_samples(shards, tmp_path, settings, workers):
    out = tmp_path / "records"
    manifest = convert(
        f"tar:{shards}/*.tar", settings(), str(out), shard_samples=12, workers=workers
    )
    before = open_source(f"tar:{shards}/*.tar", "train", settings())
    after = open_source(f"records:{out}", "train", settings())
    assert [(s.image, s.captions) for s in after] == [(s.image, s.captions) for s in before]
    assert manifest["samples"] == 30 and [e["samples"] for e in manifest["shards"]] == [12, 12, 6]
    assert json.loads((out / "manifest.json").read_text()) == manifest
    names = {"manifest.json"} | {entry["name"] for entry in manifest["shards"]}
    assert {path.name for path in out.iterdir()} == names
    for entry in manifest["shards"]:
        data = (out / entry["name"]).read_bytes()
        assert (len(data), xxhash.xxh3_128_hexdigest(data)) == (entry["size"], entry["xxh3"])


def test_a_random_order_has_each_sample_once_and_hangs_on_its_seed(shards, tmp_path, settings):
    spec, orders = f"tar:{shards}/*.tar", []
    before = [sample.captions for sample in open_source(spec, "train", settings())]
    manifests = []
    for place, seed in enumerate((5, 5, 6)):
        out, workers = tmp_path / str(place), 1 + place % 2
        manifests.append(convert(spec, settings(), str(out), workers=workers, shuffle=seed))
        orders.append([one.captions for one in open_source(f"records:{out}", "train", settings())])
    assert orders[0] == orders[1] and manifests[0] == manifests[1]
    assert orders[0] != before and orders[2] not in (before, orders[0])
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(before)
    assert manifests[0]["fingerprint"] != manifests[2]["fingerprint"]
    with pytest.raises(ValueError, match="holds converted data"):
        convert(spec, settings(), str(tmp_path / "0"), workers=1, shuffle=6)


def test_what_is_left_out_is_said(tmp_path, settings, write_tar, encode):
    files = {}
    for number in range(20):
        files[f"{number:02}.png"] = encode((0, number, 0))
        files[f"{number:02}.txt"] = b"" if number == 7 else b"a caption"
    write_tar(tmp_path / "s.tar", files)
    manifest = convert(
        f"tar:{tmp_path}/s.tar", settings(max_bad_share=0.1), str(tmp_path / "out"), workers=1
    )
    assert manifest["samples"] == 19 and manifest["left_out"] == {"missing-caption": 1}
    assert manifest["left_out_first"] == [["s.tar/07", "missing-caption"]]
    with pytest.raises(ValueError, match=r"1 of 20 samples cannot be used.*s\.tar/07"):
        convert(f"tar:{tmp_path}/s.tar", settings(), str(tmp_path / "other"), workers=1)
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_converted_data_is_not_overwritten(shards, tmp_path, settings):
    arguments = (f"tar:{shards}/*.tar", settings(), str(tmp_path / "out"))
    convert(*arguments, workers=1)
    with pytest.raises(ValueError, match="out holds converted data"):
        convert(*arguments, workers=1)


@pytest.fixture
def ends_early(shards, settings, monkeypatch):
    """Convert into a folder, until the file of this number."""

    def _convert(out, number):
        write = conversion.write_shard

        def fail(source, start, end, path):
            if start == number * 12:
                raise KeyboardInterrupt
            return write(source, start, end, path)

        with monkeypatch.context() as patch:
            patch.setattr(conversion, "write_shard", fail)
            with pytest.raises(KeyboardInterrupt):
                convert(f"tar:{shards}/*.tar", settings(), out, shard_samples=12, workers=1)

    return _convert


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_a_conversion_that_did_not_end_goes_on_and_ends_alike(
    shards, tmp_path, settings, ends_early, monkeypatch, place
):
    arguments = {"shard_samples": 12, "workers": 1}
    expected = convert(f"tar:{shards}/*.tar", settings(), str(tmp_path / "whole"), **arguments)
    out = str(tmp_path / "out") if place == "disk" else "memory://converted"
    filesystem, folder = fsspec.core.url_to_fs(out)
    ends_early(out, 2)
    _, second = sorted(filesystem.glob(f"{folder}/*.array_record"))
    filesystem.pipe_file(second, b"half of it")
    encoded = []
    encode = conversion.records.encode
    monkeypatch.setattr(
        conversion.records, "encode", lambda sample: encoded.append(sample.key) or encode(sample)
    )
    assert convert(f"tar:{shards}/*.tar", settings(), out, **arguments) == expected
    assert len(encoded) == 18  # without the first file, which was whole
    names = {path.rpartition("/")[2] for path in filesystem.find(folder)}
    assert names == {"manifest.json"} | {entry["name"] for entry in expected["shards"]}
    assert len(open_source(f"records:{out}", "train", settings())) == 30
    filesystem.rm(folder, recursive=True)


def test_files_of_another_conversion_are_in_the_way(shards, tmp_path, settings, ends_early):
    out = str(tmp_path / "out")
    ends_early(out, 2)
    with pytest.raises(ValueError, match=r"2 files of another conversion that did not end.*delete"):
        convert(f"tar:{shards}/*.tar", settings(), out, shard_samples=15, workers=1)


def test_files_of_other_data_are_written_again(
    shards, tmp_path, settings, ends_early, write_tar, encode
):
    out = str(tmp_path / "out")
    ends_early(out, 1)
    files = {f"{n:05d}.png": encode((7, n, 0)) for n in range(10)}
    texts = {f"{n:05d}.txt": b"changed" for n in range(10)}
    write_tar(shards / "00000.tar", dict(sorted((files | texts).items())))
    index_source(f"tar:{shards}/*.tar", settings())
    convert(f"tar:{shards}/*.tar", settings(), out, shard_samples=12, workers=1)
    assert open_source(f"records:{out}", "train", settings())[0].captions == ("changed",)


def test_labels_and_names_of_classes_are_kept(tmp_path, settings, encode):
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(encode((0, number, 0)))
    convert(f"folder:{tmp_path}/in", settings(), str(tmp_path / "out"), workers=1)
    source = open_source(f"records:{tmp_path}/out", "test", settings())
    assert source.classes == ("cat", "dog")
    assert [(source[i].label, source[i].captions) for i in (0, 1)] == [(0, ("cat",)), (1, ("dog",))]


def test_a_bucket_can_be_written_to(shards, settings):
    manifest = convert(f"tar:{shards}/*.tar", settings(), "memory://converted", workers=1)
    filesystem = fsspec.filesystem("memory")
    assert filesystem.size("/converted/" + manifest["shards"][0]["name"]) == manifest["shards"][0]["size"]  # fmt: skip
    filesystem.rm("/converted", recursive=True)

"""ArrayRecord pairs give back what was put in, and damage is noticed."""

import dataclasses
import json
import pickle

import fsspec
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from clip_jax import storage
from clip_jax.data import block_order
from clip_jax.data.samples import BadSample
from clip_jax.data.sources.record_blocks import RecordBlocks, describe
from clip_jax.data.sources.records import MANIFEST, encode
from clip_jax.data.sources.registry import open_source


def write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


@pytest.fixture
def samples(numbered):
    source = numbered(12, captions=2)
    return [dataclasses.replace(source[i], caption_probs=(0.25, 0.75)) for i in range(12)]


@pytest.fixture
def folder(tmp_path, samples):
    for file in range(2):
        records = [encode(sample) for sample in samples[file * 6 : file * 6 + 6]]
        write(tmp_path / f"pairs-{file}.array_record", records)
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "/pairs-{0,1}.array_record", "/*.array_record"])
def test_what_was_written_is_read(folder, samples, settings, pattern):
    source = open_source(f"records:{folder}{pattern}", "train", settings())
    assert len(source) == 12
    for index in (11, 0, 6):
        found, expected = source[index], samples[index]
        assert (found.image, found.captions, found.label) == (
            expected.image,
            expected.captions,
            expected.label,
        )
        assert found.caption_probs == pytest.approx((0.25, 0.75))
        assert found.key == f"pairs-{index // 6}.array_record/{index % 6}"


def test_a_copy_in_another_process_reads_the_same(folder, settings):
    source = open_source(f"records:{folder}", "train", settings())
    assert pickle.loads(pickle.dumps(source))[7] == source[7]


def test_examples_of_others_are_read_by_their_column_names(tmp_path, settings, encode):
    example = tf_example_pb2.Example()
    example.features.feature["jpg"].bytes_list.value.append(b"image")
    example.features.feature["txt"].bytes_list.value.append("três".encode())
    example.features.feature["width"].int64_list.value.append(640)
    path = write(tmp_path / "x.array_record", [example.SerializeToString()])
    assert open_source(f"records:{path}", "train", settings())[0].captions == ("três",)
    with pytest.raises(ValueError, match="'width' holds int, not text"):
        open_source(f"records:{path}", "train", settings(caption_column="width"))
    with pytest.raises(ValueError, match=r"no column 'title'.*jpg, txt, width"):
        open_source(f"records:{path}", "train", settings(caption_column="title"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"captions": ("",)}, "missing-caption"), ({"image": b""}, "missing-image")],
)
def test_a_record_that_lacks_something_is_a_bad_sample(tmp_path, samples, settings, change, reason):
    bad = dataclasses.replace(samples[1], **change)
    path = write(tmp_path / "x.array_record", [encode(samples[0]), encode(bad)])
    source = open_source(f"records:{path}", "train", settings())
    with pytest.raises(BadSample, match=reason):
        source[1]


def test_a_flipped_bit_is_one_bad_sample(folder, settings):
    path = folder / "pairs-1.array_record"
    data = bytearray(path.read_bytes())
    data[data.index(b"PNG") + 20] ^= 1
    path.write_bytes(data)
    source = open_source(f"records:{folder}", "train", settings())
    bad = []
    for index in range(12):
        try:
            source[index]
        except BadSample as error:
            bad.append((error.reason, error.shard))
    assert bad == [("unreadable-record", "pairs-1.array_record")]


def test_a_truncated_file_is_named(folder, settings):
    path = folder / "pairs-1.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"pairs-1\.array_record is not a whole ArrayRecord file"):
        open_source(f"records:{folder}", "train", settings())


def test_a_file_that_differs_from_its_manifest_is_named(folder, settings):
    entries = [{"name": path.name, "size": path.stat().st_size} for path in folder.iterdir()]
    entries[0]["size"] += 1
    (folder / MANIFEST).write_text(json.dumps({"shards": entries}))
    with pytest.raises(ValueError, match=rf"{entries[0]['name']} has \d+ bytes and should have"):
        open_source(f"records:{folder}", "train", settings())


@pytest.fixture
def converted(folder):
    """The folder with a manifest of its files."""
    entries = [{"name": path.name, "size": path.stat().st_size} for path in folder.iterdir()]
    (folder / MANIFEST).write_text(json.dumps({"shards": entries, "classes": ["cat", "dog"]}))
    return folder


def test_a_folder_is_what_its_manifest_says(converted, settings):
    source = open_source(f"records:{converted}/", "train", settings())
    assert source.classes == ("cat", "dog") and source.templates is None
    assert pickle.loads(pickle.dumps(source)).classes == source.classes
    extra = converted / "pairs-7.array_record"
    extra.write_bytes((converted / "pairs-0.array_record").read_bytes())
    with pytest.raises(ValueError, match=r"has 1 files that its manifest.* not name: pairs-7\."):
        open_source(f"records:{converted}", "train", settings())
    extra.rename(converted / "pairs-1.array_record")
    (converted / "pairs-0.array_record").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 files that its manifest.*: pairs-0\."):
        open_source(f"records:{converted}", "train", settings())
    assert len(open_source(f"records:{converted}/pairs-1*", "train", settings())) == 6
    (converted / MANIFEST).write_text('{"shards": [')
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        open_source(f"records:{converted}", "train", settings())


def test_without_a_manifest_numbered_files_are_all_of_one_set(tmp_path, samples, settings):
    first = write(tmp_path / "x.array_record-00000-of-00002", [encode(samples[0])])
    source = f"records:{tmp_path}"
    with pytest.raises(ValueError, match=r"lacks 1 files .*x\.array_record-00001-of-00002"):
        open_source(source, "train", settings())
    write(tmp_path / "x.array_record-00001-of-00002", [encode(samples[1])])
    assert len(open_source(source, "train", settings())) == 2
    first.rename(tmp_path / "x.array_record-00000-of-00001")
    with pytest.raises(ValueError, match="several sets, -of-00001 and -of-00002"):
        open_source(source, "train", settings())


@pytest.fixture
def bucket(folder):
    """The files in fsspec's file system in memory, which stands for a bucket."""
    filesystem = fsspec.filesystem("memory")
    for path in folder.glob("*.array_record"):
        filesystem.pipe_file(f"/records/{path.name}", path.read_bytes())
    yield filesystem
    filesystem.rm("/records", recursive=True)


def test_files_in_a_bucket_are_read_as_those_on_a_disk(bucket, folder, settings):
    there = open_source("records:memory://records", "train", settings())
    here = open_source(f"records:{folder}", "train", settings())
    assert [there[index] for index in range(12)] == [here[index] for index in range(12)]
    assert there.fingerprint == here.fingerprint
    assert pickle.loads(pickle.dumps(there))[7] == here[7]
    assert there.remote and there.blocks.first_K.tolist() == [0, 6, 12]
    assert here.blocks is None and not here.remote


def test_a_run_of_a_block_has_the_samples_and_damage_is_one_bad_sample(bucket, folder, settings):
    here = open_source(f"records:{folder}", "train", settings())
    there = open_source("records:memory://records", "train", settings())
    span = there.span(7, 11)
    data = bytearray(bucket.cat_file(span.path, start=span.start, end=span.end))
    run = there.unpack(7, 11, bytes(data))
    assert [run[index] for index in range(7, 11)] == [here[index] for index in range(7, 11)]
    place = [place for place in range(len(data)) if data[place : place + 3] == b"PNG"][3]
    data[place + 20] ^= 1  # of the fourth record of the file, which is number 9
    run = there.unpack(7, 11, bytes(data))
    assert [run[index] for index in (7, 8, 10)] == [here[index] for index in (7, 8, 10)]
    with pytest.raises(BadSample, match=r"pairs-1\.array_record/3: unreadable-record"):
        run[9]


@pytest.mark.parametrize("options", ["group_size:1", "group_size:3", "group_size:1,uncompressed"])
def test_chunks_are_found_whatever_the_file_is_written_with(
    tmp_path, samples, monkeypatch, options
):
    monkeypatch.setattr(block_order, "BLOCK_BYTES", (500, 500))
    path = tmp_path / "x.array_record"
    writer = ArrayRecordWriter(str(path), options)
    written = [encode(sample) for sample in samples]
    for record in written:
        writer.write(record)
    writer.close()
    (info,) = storage.stat([f"file://{path}"])
    found = RecordBlocks([f"file://{path}"], [info], [{}])
    first_K = found.blocks.first_K.tolist()
    assert first_K[0] == 0 and first_K[-1] == 12 and len(first_K) > 2
    assert [found[index] for index in range(12)] == written
    described = RecordBlocks([f"file://{path}"], [info], [describe(f"file://{path}", info)])
    assert described.blocks.first_K.tolist() == first_K


@pytest.mark.parametrize("left", [10, 70_000])
def test_a_file_in_a_bucket_that_is_cut_off_is_named(bucket, settings, left):
    data = bucket.cat_file("/records/pairs-1.array_record")
    bucket.pipe_file("/records/pairs-1.array_record", data[:left])
    with pytest.raises(ValueError, match=r"pairs-1\.array_record is not a whole ArrayRecord file"):
        open_source("records:memory://records", "train", settings())


def test_a_folder_of_a_bucket_is_listed_and_checked(converted, settings, monkeypatch):
    monkeypatch.setattr(storage, "LISTING_S", 0.0)
    bucket = fsspec.filesystem("memory")
    bucket.put(str(converted), "/out", recursive=True)
    try:
        assert len(open_source("records:memory://out", "train", settings())) == 12
        bucket.rm("/out/pairs-0.array_record")
        with pytest.raises(ValueError, match=r"records:memory://out lacks 1 files"):
            open_source("records:memory://out", "train", settings())
    finally:
        bucket.rm("/out", recursive=True)


@pytest.mark.parametrize(
    "record", [pickle.dumps({"image": b"x"}), b'{"image": "x", "caption": "y"}', bytes(48), b""]
)
def test_records_that_are_no_examples_are_refused_in_a_line_that_says_so(
    tmp_path, settings, record
):
    write(tmp_path / "a.array_record", [record])
    with pytest.raises(ValueError, match=r"a\.array_record: its records are no tf\.train\.Example"):
        open_source(f"records:{tmp_path}/a.array_record", "train", settings())


def test_a_caption_that_is_not_utf8_is_counted(tmp_path, settings, encode):
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(encode((1, 2, 3)))
    example.features.feature["caption"].bytes_list.value.append("três".encode("latin-1"))
    write(tmp_path / "a.array_record", [example.SerializeToString()])
    source = open_source(f"records:{tmp_path}/a.array_record", "train", settings())
    with pytest.raises(BadSample, match="caption-not-utf8"):
        source[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"samples": 5}, {"samples": -1}, {"blocks": [[1, 0]]}, {"blocks": [[0, 9], [3, 4]]},
        {"blocks": "x"}, {"blocks": []}, {"footer": 1 << 40}, {"footer": None},
    ],
)  # fmt: skip
def test_blocks_that_a_file_cannot_have_are_refused(bucket, changed):
    path = "memory://records/pairs-1.array_record"
    (info,) = storage.stat([path])
    known = describe(path, info)
    assert RecordBlocks([path], [info], [known]).counts == [6]
    known |= {"samples": 6, "blocks": [[0, 0], [5, 100]]} if "samples" in changed else {}
    with pytest.raises(ValueError, match=r"pairs-1\.array_record does not have the blocks"):
        RecordBlocks([path], [info], [known | changed])


def test_a_start_reads_records_of_a_few_files_of_a_bucket(bucket, settings, monkeypatch):
    data = bucket.cat_file("/records/pairs-0.array_record")
    for number in range(20):
        bucket.pipe_file(f"/records/more-{number:02d}.array_record", data)
    read = []
    plain = RecordBlocks.__getitem__
    monkeypatch.setattr(RecordBlocks, "__getitem__", lambda s, i: read.append(i) or plain(s, i))
    assert len(open_source("records:memory://records/*", "train", settings())) == 22 * 6
    assert len({index // 6 for index in read}) <= 4


def test_captions_that_are_not_read_are_named(tmp_path, settings, encode):
    example = tf_example_pb2.Example()
    for name, value in (("image", encode((1, 1, 1))), ("caption", b"a"), ("caption_2", b"b")):
        example.features.feature[name].bytes_list.value.append(value)
    path = write(tmp_path / "a.array_record", [example.SerializeToString()])
    source = open_source(f"records:{path}", "train", settings())
    assert source[0].captions == ("a",) and "not read: caption_2" in source.notes[0]


def test_a_file_of_tfrecord_is_told_that_it_is_not_read(tmp_path, settings):
    (tmp_path / "a.tfrecord").write_bytes(b"\x0a" + bytes(11) + b"x" * 10 + bytes(4))
    with pytest.raises(ValueError, match=r"a\.tfrecord is not.*TFRecord is not read"):
        open_source(f"records:{tmp_path}/a.tfrecord", "train", settings())

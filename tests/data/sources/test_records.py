"""ArrayRecord pairs give back what was put in, and damage is noticed."""

import dataclasses
import json
import pickle

import fsspec
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from clip_jax.data.samples import BadSample
from clip_jax.data.sources import records
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


def test_a_bucket_that_the_library_cannot_read_is_refused(settings):
    with pytest.raises(ValueError, match=r"from a disk and from gs:// alone; copy"):
        open_source("records:s3://bucket/out", "train", settings())


def test_a_folder_of_a_google_bucket_is_listed_and_checked(converted, settings, monkeypatch):
    """The library's own client reads the files; the rest goes through fsspec."""
    bucket = fsspec.filesystem("memory")
    bucket.put(str(converted), "/out", recursive=True)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (GoogleLike(), url[4:]))
    opened = {}
    monkeypatch.setattr(records, "RecordsSource", lambda paths, **_: opened.update(paths=paths))
    open_records = records.open_source
    try:
        open_records("gs://out", "train", settings())
        assert opened["paths"] == [f"gs://out/pairs-{n}.array_record" for n in (0, 1)]
        bucket.rm("/out/pairs-0.array_record")
        with pytest.raises(ValueError, match=r"records:gs://out lacks 1 files"):
            open_records("gs://out", "train", settings())
    finally:
        bucket.rm("/out", recursive=True)


class GoogleLike(fsspec.get_filesystem_class("memory")):
    """The file system in memory under Google's protocol."""

    def unstrip_protocol(self, name):
        return f"gs:/{name}"


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

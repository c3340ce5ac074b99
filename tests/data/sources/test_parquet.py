"""Parquet files as img2dataset and Hugging Face write them."""

import concurrent.futures
import json
import pickle

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax import storage
from clip_jax.data.samples import BadSample
from clip_jax.data.sources import parquet, parquet_files
from clip_jax.data.sources.registry import index_source, open_eval_source, open_source


@pytest.fixture
def folder(tmp_path, encode):
    for file in range(2):
        images = [encode((file, number, 0)) for number in range(10)]
        texts = [f"{file} {number}" for number in range(10)]
        table = pa.table({"jpg": images, "text": texts, "width": list(range(10))})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=3)
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/{0..1}.parquet"])
def test_rows_are_found_by_number(folder, settings, encode, pattern):
    source = open_source(f"parquet:{folder}{pattern}", "train", settings())
    assert len(source) == 20
    for number in (19, 0, 9, 10, 13):
        assert source[number].captions == (f"{number // 10} {number % 10}",)
        assert source[number].image == encode((number // 10, number % 10, 0))
        assert source[number].key == f"{number // 10}.parquet/{number}"


def test_a_copy_in_another_process_reads_the_same(folder, settings):
    source = open_source(f"parquet:{folder}", "train", settings())
    assert pickle.loads(pickle.dumps(source))[7] == source[7]


def test_row_groups_are_kept_within_the_limit_and_decoded_once(folder, settings, monkeypatch):
    source = open_source(f"parquet:{folder}", "train", settings())
    opened = []
    real = parquet_files.open_file
    monkeypatch.setattr(parquet_files, "open_file", lambda path: opened.append(path) or real(path))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(source.__getitem__, [0, 1, 2] * 10))
    assert len(opened) == 1
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1)
    for number in (5, 10, 15):
        source[number]
    assert len(source._cache) == 1


def test_hugging_face_structs_and_lists_of_captions_are_read(tmp_path, settings):
    table = pa.table({"image": [{"bytes": b"data", "path": None}], "captions": [["a", "b"]]})
    pq.write_table(table, tmp_path / "h.parquet")
    sample = open_source(f"parquet:{tmp_path}", "train", settings())[0]
    assert sample.image == b"data" and sample.captions == ("a", "b")


def test_paths_start_at_the_folder_of_the_file(tmp_path, settings):
    (tmp_path / "i.jpg").write_bytes(b"data")
    pq.write_table(
        pa.table({"path": ["i.jpg", "gone.jpg"], "text": ["a", "b"]}), tmp_path / "p.parquet"
    )
    source = open_source(f"parquet:{tmp_path}", "train", settings())
    assert source[0].image == b"data"
    with pytest.raises(BadSample, match=r"gone\.jpg: missing-file"):
        source[1]


def test_rows_that_lack_something_are_bad_samples(tmp_path, settings):
    table = pa.table({"jpg": [b"x", None, b"x"], "text": [" ", "a", None]})
    pq.write_table(table, tmp_path / "p.parquet")
    source = open_source(f"parquet:{tmp_path}", "train", settings())
    for number, reason in enumerate(["missing-caption", "missing-image", "missing-caption"]):
        with pytest.raises(BadSample, match=reason):
            source[number]


def test_a_damaged_row_group_is_bad_samples_and_decoded_once(folder, settings, monkeypatch):
    path = folder / "1.parquet"
    place = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    monkeypatch.setattr(storage, "RETRY_DELAYS", (60.0,))
    source = open_source(f"parquet:{folder}", "train", settings())
    decoded = []
    real = parquet.read_group
    monkeypatch.setattr(parquet, "read_group", lambda *args: decoded.append(args) or real(*args))
    for number in (13, 14, 15):
        with pytest.raises(BadSample, match=rf"1\.parquet/{number}: unreadable-row-group"):
            source[number]
    assert len(decoded) == 1
    assert source[12].captions == ("1 2",) and source[16].captions == ("1 6",)


def test_corrupt_compressed_bytes_are_damage_and_a_failing_disk_is_not(monkeypatch):
    class File:
        def __init__(self, error):
            self.error = error

        def read_row_group(self, number, names):
            raise self.error

    errors = (
        OSError("Corrupt snappy compressed data."),
        pa.ArrowInvalid("x"),
        pa.ArrowKeyError("x"),
    )
    for error in errors:
        monkeypatch.setattr(parquet_files, "open_file", lambda path, error=error: File(error))
        with pytest.raises(parquet.DamagedGroup, match=r"0\.parquet, row group 3"):
            parquet.read_group("0.parquet", 3, ["text"])
    for error in (OSError(5, "input/output error"), ConnectionError("reset"), MemoryError("full")):
        monkeypatch.setattr(parquet_files, "open_file", lambda path, error=error: File(error))
        with pytest.raises(type(error)):
            parquet.read_group("0.parquet", 3, ["text"])


def test_a_file_that_vanishes_is_tried_again_and_then_named(folder, settings, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))
    source = open_source(f"parquet:{folder}", "train", settings())
    (folder / "1.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.parquet cannot be read, after 3 tries"):
        source[12]
    assert source[2].captions == ("0 2",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"caption_column": "width"}, r"0\.parquet: the caption column 'width' holds numbers \(int64\)"),
        ({"caption_column": "title"}, r"no column 'title' .*jpg, text, width"),
        ({"image_column": "png"}, r"no column 'png' .*jpg, text, width"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used_are_refused(folder, settings, columns, message):
    with pytest.raises(ValueError, match=message):
        open_source(f"parquet:{folder}", "train", settings(**columns))


def test_a_truncated_file_is_named(folder, settings):
    path = folder / "1.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"1\.parquet is not a whole Parquet file"):
        open_source(f"parquet:{folder}", "train", settings())


def write_labels(path, labels, metadata=None):
    table = pa.table({"image": [b"data"] * len(labels), "label": labels})
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_labels_are_named_by_hugging_face_or_by_the_file_beside_them(tmp_path, settings):
    features = {"label": {"names": ["tench", "shark"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    write_labels(tmp_path / "a.parquet", [1, 0, None], metadata)
    source = open_source(f"parquet:{tmp_path}", "train", settings())
    assert source.classes == ("tench", "shark")
    assert [(source[i].label, source[i].captions) for i in (0, 1)] == [
        (1, ("shark",)),
        (0, ("tench",)),
    ]
    with pytest.raises(BadSample, match="missing-caption"):
        source[2]
    write_labels(tmp_path / "a.parquet", [1, 0])
    with pytest.raises(ValueError, match=r"no captions, only labels without names"):
        open_source(f"parquet:{tmp_path}", "train", settings())
    assert open_source(f"parquet:{tmp_path}", "test", settings())[0].label == 1
    (tmp_path / "classnames.txt").write_text("cock\nhen\n")
    copy = pickle.loads(pickle.dumps(open_source(f"parquet:{tmp_path}", "train", settings())))
    assert copy.classes == ("cock", "hen") and copy[0].captions == ("hen",)


def test_names_of_classes_are_labels_where_the_column_is_named(tmp_path, settings):
    write_labels(tmp_path / "a.parquet", ["dog", "cat"])
    write_labels(tmp_path / "b.parquet", ["ant", None])
    cfg = settings(label_column="label")
    source = open_source(f"parquet:{tmp_path}", "test", cfg)
    assert source.classes == ("ant", "cat", "dog")
    assert [source[i].label for i in range(3)] == [2, 1, 0]
    with pytest.raises(ValueError, match=r"no column that is known to hold the caption"):
        open_source(f"parquet:{tmp_path}", "test", settings())
    pq.write_table(pa.table({"image": [b"x"], "label": [True]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"'label' holds bool.*data\.label_column"):
        open_source(f"parquet:{tmp_path}", "test", cfg)


def test_a_folder_of_a_bucket_is_read_as_one_of_a_disk(folder, settings):
    bucket = fsspec.filesystem("memory")
    bucket.put(str(folder), "/parquet", recursive=True)
    try:
        here = open_source(f"parquet:{folder}", "train", settings())
        there = open_source("parquet:memory://parquet", "train", settings())
        assert [there[i] for i in range(20)] == [here[i] for i in range(20)]
    finally:
        bucket.rm("/parquet", recursive=True)


# ------------------------------------------------------------------- captions and images as they are


SENTENCES = [[{"raw": "one", "id": 1}, {"raw": "two", "id": 2}], [{"raw": "three", "id": 3}]]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (SENTENCES, "struct<"),
        ([{"en": "one"}, {"en": "two"}], "struct<"),
        ([True, False], "bool"),
        ([1.5, 2.5], "double"),
        ([[1], [2]], "int64"),
    ],
)
def test_a_caption_column_that_is_no_text_is_refused_naming_its_type(
    tmp_path, settings, column, kind
):
    pq.write_table(pa.table({"image": [b"a", b"b"], "caption": column}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=rf"a\.parquet: the caption column 'caption' holds .*{kind}"
    ):
        open_source(f"parquet:{tmp_path}", "train", settings())


def test_a_field_of_objects_is_read_by_its_name(tmp_path, settings):
    table = pa.table({"image": [b"a", b"b"], "sentences": SENTENCES})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}", "train", settings(caption_column="sentences.raw"))
    assert [sample.captions for sample in source] == [("one", "two"), ("three",)]
    with pytest.raises(ValueError, match=r"'sentences\.text' is not there"):
        open_source(f"parquet:{tmp_path}", "train", settings(caption_column="sentences.text"))


def test_columns_that_differ_are_refused_naming_the_file(tmp_path, settings):
    pq.write_table(pa.table({"image": [b"a"], "caption": ["one"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"image": [b"b"], "text": ["two"]}), tmp_path / "1.parquet")
    with pytest.raises(
        ValueError, match=r"1\.parquet has no column 'caption', which .*image, text"
    ):
        open_source(f"parquet:{tmp_path}", "train", settings())
    pq.write_table(pa.table({"image": ["b.jpg"], "caption": ["two"]}), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet: the column 'image' holds string"):
        open_source(f"parquet:{tmp_path}", "train", settings())
    twice = [pa.array([b"b"]), pa.array(["two"]), pa.array(["three"])]
    twice = pa.Table.from_arrays(twice, names=["image", "caption", "caption"])
    pq.write_table(twice, tmp_path / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet has 2 columns 'caption'"):
        open_source(f"parquet:{tmp_path}", "train", settings())
    more = pa.table({"caption": pa.array(["two"], pa.large_string()), "image": [b"b"], "x": [1]})
    pq.write_table(more, tmp_path / "1.parquet")
    assert len(open_source(f"parquet:{tmp_path}", "train", settings())) == 2


@pytest.mark.parametrize("kind", ["path", "bytes", "struct"])
def test_rows_of_an_image_are_one_sample_also_across_files(tmp_path, settings, encode, kind):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode((number, 2, 3)))
    for file in range(2):
        files = [f"{number}.png" for number in (2, 0, 1)]
        data = [(tmp_path / name).read_bytes() for name in files]
        images = {
            "path": files,
            "bytes": data,
            "struct": [{"bytes": one, "path": None} for one in data],
        }
        texts = [f"{name} view {file}" for name in files]
        table = pa.table({"image": images[kind], "caption": texts})
        pq.write_table(table, tmp_path / f"{file}.parquet", row_group_size=2)
    source = open_source(f"parquet:{tmp_path}", "test", settings())
    expected = [(f"{n}.png view 0", f"{n}.png view 1") for n in (2, 0, 1)]
    assert [sample.captions for sample in source] == expected
    assert source[0].image == encode((2, 2, 3)) and "6 rows are 3 images" in source.notes[0]
    assert pickle.loads(pickle.dumps(source))[1] == source[1]
    apart = open_source(f"parquet:{tmp_path}", "test", settings(group_rows=False))
    assert len(apart) == 6 and apart.fingerprint != source.fingerprint


def test_a_worker_opens_no_file_again(folder, settings, monkeypatch):
    data = pickle.dumps(open_source(f"parquet:{folder}", "train", settings()))
    monkeypatch.setattr(parquet_files, "open_file", None)
    assert len(pickle.loads(data)) == 20


def test_training_and_test_files_of_a_folder_are_told_apart(folder, settings):
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        (folder / f"{'0' if name < 'train' else '1'}.parquet").rename(folder / f"{name}.parquet")
    source = open_source(f"parquet:{folder}", "train", settings())
    assert len(source) == 10 and "of other splits: 1 test" in source.notes[0]
    assert open_eval_source(settings(source=(f"parquet:{folder}",)))[0].key.startswith("test-")


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_beyond_a_limit_of_bytes_images_are_compared_if_the_first_ones_repeat_or_if_asked(
    tmp_path, settings, encode, monkeypatch, kind
):
    """Ten rows; rows 8 and 9 show one image, and in the other folder also rows 0 and 1."""
    monkeypatch.setattr(parquet, "MOST_COMPARED", 1)
    monkeypatch.setattr(parquet, "HASHED_AT_ONCE", 1)

    def write(name, numbers):
        (tmp_path / name).mkdir()
        images = [encode((number, 2, 3)) for number in numbers]
        if kind == "struct":
            images = [{"bytes": image, "path": None} for image in images]
        table = pa.table({"image": images, "caption": [f"row {row}" for row in range(10)]})
        pq.write_table(table, tmp_path / name / "a.parquet", row_group_size=2)
        return f"parquet:{tmp_path / name}"

    early = open_source(write("early", [0, 0, 2, 3, 4, 5, 6, 7, 8, 8]), "train", settings())
    assert [early[0].captions, early[7].captions] == [("row 0", "row 1"), ("row 8", "row 9")]
    spec = write("late", [0, 1, 2, 3, 4, 5, 6, 7, 8, 8])
    late = open_source(spec, "train", settings())
    assert len(late) == 10
    assert "the first 2 rows share no image" in late.notes[0]
    assert f"clip-jax data index {spec}" in late.notes[0]
    assert "10 rows are 9 images" in index_source(spec, settings())
    monkeypatch.setattr(parquet.ParquetSource, "_hashes", None)  # they are not read again
    assert open_source(spec, "train", settings())[8].captions == ("row 8", "row 9")


@pytest.mark.parametrize(
    "images", [[[1, 2]], [1], [{"height": 3, "width": 4}], [{"bytes": [1, 2], "path": "a"}]]
)
def test_images_that_are_no_files_are_refused_naming_the_type(tmp_path, settings, images):
    pq.write_table(pa.table({"image": images, "caption": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"a\.parquet: the image column 'image' holds .*image_column"
    ):
        open_source(f"parquet:{tmp_path}", "train", settings())


def test_structs_whose_bytes_are_missing_are_grouped_by_their_paths(tmp_path, settings, encode):
    (tmp_path / "0.png").write_bytes(encode((1, 2, 3)))
    images = [{"bytes": None, "path": "0.png"}] * 2 + [
        {"bytes": encode((4, 5, 6)), "path": "0.png"}
    ]
    table = pa.table({"image": images, "caption": ["one", "two", "three"]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}", "train", settings())
    assert [sample.captions for sample in source] == [("one", "two"), ("three",)]


def test_texts_that_are_lists_are_read_and_texts_that_are_objects_refused(tmp_path, settings):
    def read(texts):
        pq.write_table(pa.table({"image": [b"a", b"b"], "caption": texts}), tmp_path / "a.parquet")
        return open_source(f"parquet:{tmp_path}", "train", settings())

    source = read(['["one", "two"]', "three"])
    assert [sample.captions for sample in source] == [("one", "two"), ("three",)]
    with pytest.raises(ValueError, match=r"a\.parquet: the caption column 'caption' holds objects"):
        read(['{"raw": "one"}', "{'raw': 'two'}"])


@pytest.fixture
def grouped(tmp_path, encode):
    """A file of four row groups of ten rows, and a column that nobody wants."""
    table = pa.table({
        "image": [encode((0, n, 0)) for n in range(40)],
        "other": [bytes(1000) for _ in range(40)],
        "caption": [f"c{n}" for n in range(40)],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "grouped.parquet", row_group_size=10)
    return tmp_path / "grouped.parquet"


def test_row_groups_are_blocks_that_are_read_in_one_piece(grouped, settings):
    cfg = settings(group_rows=False)
    source = open_source(f"parquet:file://{grouped}", "train", cfg)
    assert source.remote and source.blocks.first_K.tolist() == [0, 10, 20, 30, 40]
    path, start, end, info = source.span(23, 27)
    data = storage.read_range(path, start, end, info=info)
    run = source.unpack(23, 27, data)
    assert [run[index] for index in range(23, 27)] == [source[index] for index in range(23, 27)]
    assert pickle.loads(pickle.dumps(source)).span(23, 27) == (path, start, end, info)
    run = source.unpack(23, 27, bytes(len(data)))
    with pytest.raises(BadSample, match=r"grouped\.parquet/25: unreadable-row-group"):
        run[25]


def test_labels_with_gaps_are_numbers_and_others_are_said_to_be_left_out(tmp_path, settings):
    images = [b"0", b"1", b"2"]
    for name, labels in (("f", [3.0, None, float("nan")]), ("t", ["cat", "dog", "cat"])):
        table = pa.table({"image": images, "caption": ["a", "b", "c"], "label": labels})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    numbers = open_source(f"parquet:{tmp_path}/f.parquet", "train", settings())
    assert [sample.label for sample in numbers] == [3, None, None]
    texts = open_source(f"parquet:{tmp_path}/t.parquet", "train", settings())
    assert [sample.label for sample in texts] == [None] * 3
    assert any("'label' holds 'string'" in note for note in texts.notes)


def test_lists_of_one_length_are_captions(tmp_path, settings):
    five = pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2))
    pq.write_table(pa.table({"image": [b"0", b"1"], "caption": five}), tmp_path / "f.parquet")
    source = open_source(f"parquet:{tmp_path}", "train", settings())
    assert [sample.captions for sample in source] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"), (b"<html>", "web page"), (None, "no rows")],
)  # fmt: skip
def test_files_without_rows_are_called_what_they_are(tmp_path, settings, data, message):
    path = tmp_path / "f.parquet"
    if data is None:
        kinds = {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}
        pq.write_table(pa.table(kinds), path)
    else:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"f\.parquet .*{message}"):
        open_source(f"parquet:{path}", "train", settings())


IMAGE_COLUMNS = {
    "paths": lambda value: value,
    "structs": lambda value: {"bytes": None, "path": value},
    "dictionary": lambda value: value,
}


@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
def test_paths_that_all_miss_are_refused_at_once(tmp_path, settings, encode, kind):
    images = [IMAGE_COLUMNS[kind](f"there/{number}.png") for number in range(30)]
    table = pa.table({"image": images, "caption": [f"a {number}" for number in range(30)]})
    if kind == "dictionary":
        table = table.set_column(0, "image", table["image"].dictionary_encode())
    pq.write_table(table, tmp_path / "p.parquet")
    message = r"p\.parquet: none of its first 10 images is there; the first is 'there/0\.png'"
    with pytest.raises(FileNotFoundError, match=message):
        open_source(f"parquet:{tmp_path}", "train", settings())
    (tmp_path / "there").mkdir()
    (tmp_path / "there/9.png").write_bytes(encode((1, 2, 3)))
    assert open_source(f"parquet:{tmp_path}", "train", settings())[9].captions == ("a 9",)


def test_a_row_of_bytes_among_paths_that_miss_opens(tmp_path, settings, encode):
    images = [{"bytes": None, "path": "gone.png"}, {"bytes": encode((1, 2, 3)), "path": None}]
    table = pa.table({"image": images, "caption": ["a", "b"]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert open_source(f"parquet:{tmp_path}", "train", settings())[1].captions == ("b",)


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_picture_in_base64_is_refused_in_one_short_line(tmp_path, settings, start, as_bytes):
    text = f"{start}{'iVBORw0KGgo' * 900}"
    table = pa.table({"image": [text.encode() if as_bytes else text], "caption": ["a picture"]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p\.parquet: its first image is base64") as caught:
        open_source(f"parquet:{tmp_path}/p.parquet", "train", settings())
    assert len(str(caught.value)) < 300 + len(str(tmp_path)) and "\n" not in str(caught.value)


def test_a_key_is_not_as_long_as_what_stands_in_a_row(tmp_path, settings, encode):
    images = [{"bytes": encode((1, 2, 3)), "path": None}, {"bytes": None, "path": "a/" * 50_000}]
    table = pa.table({"image": images, "caption": ["a", "b"]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(BadSample, match=r"p\.parquet/1 .*: unreadable-file") as caught:
        open_source(f"parquet:{tmp_path}", "train", settings())[1]
    assert len(caught.value.key) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("fields", [("path", "bytes"), ("bytes", "path")])
def test_images_are_told_apart_by_their_bytes_whatever_their_names(
    tmp_path, settings, encode, fields
):
    rows = [{"path": "image.png", "bytes": encode((k, k, k))} for k in (0, 1, 0)]
    images = pa.StructArray.from_arrays([pa.array(r[f] for r in rows) for f in fields], fields)
    pq.write_table(pa.table({"image": images, "caption": ["a", "b", "c"]}), tmp_path / "0.parquet")
    source = open_source(f"parquet:{tmp_path}", "train", settings())
    assert [sample.captions for sample in source] == [("a", "c"), ("b",)]
    assert source[1].image == encode((1, 1, 1))


def test_a_file_without_rows_before_the_others_is_passed_over(tmp_path, settings, encode):
    table = pa.table({"image": [encode((1, 1, 1))] * 2, "caption": ["a", "b"]})
    pq.write_table(table.slice(0, 0), tmp_path / "0.parquet")
    pq.write_table(table, tmp_path / "1.parquet")
    source = open_source(f"parquet:{tmp_path}", "train", settings())
    assert [sample.captions for sample in source] == [("a", "b")]


def test_caption_columns_that_are_not_read_are_named(tmp_path, settings, encode):
    table = pa.table({"image": [encode((1, 1, 1))], "caption": ["a"], "caption_2": ["b"]})
    pq.write_table(table, tmp_path / "0.parquet")
    assert "not read: caption_2" in open_source(f"parquet:{tmp_path}", "train", settings()).notes[0]

"""Caption files are read as people write them, and mistakes are named."""

import json
import pickle

import fsspec
import pytest

from clip_jax.data.samples import BadSample
from clip_jax.data.sources.registry import open_source


@pytest.fixture
def folder(tmp_path, encode):
    (tmp_path / "photos").mkdir()
    for name, kind in (("a.jpg", "JPEG"), ("b.png", "PNG"), ("c.webp", "WEBP")):
        (tmp_path / "photos" / name).write_bytes(encode((200, 30, 40), kind=kind))
    (tmp_path / "photos" / "loop.jpg").symlink_to("loop.jpg")
    return tmp_path


@pytest.fixture
def read(folder, settings):
    """Write `text` to a file of this name and open it."""

    def _read(name, text, split="train", **columns):
        (folder / name).write_text(text, encoding="utf-8")
        return open_source(f"pairs:{folder / name}", split, settings(**columns))

    return _read


CSV = 'filepath,title\nphotos/a.jpg,a red one\nphotos/b.png,"commas, and ""quotes"""\nphotos/c.webp,três\n'


def test_paths_start_at_the_folder_of_the_file(read, folder):
    source = read("c.csv", CSV)
    assert [sample.captions for sample in source] == [
        ("a red one",),
        ('commas, and "quotes"',),
        ("três",),
    ]
    assert source[1].image == (folder / "photos" / "b.png").read_bytes()
    assert source[1].key == "c.csv/2 photos/b.png" and source[1].shard == "c.csv"


def test_csv_tsv_and_jsonl_of_the_same_rows_give_the_same(read):
    rows = [("photos/a.jpg", "one"), ("photos/b.png", "two, three")]
    expected = [sample.captions for sample in read("c.csv", 'image,caption\nphotos/a.jpg,one\nphotos/b.png,"two, three"\n')]  # fmt: skip
    tsv = "image\tcaption\n" + "".join(f"{image}\t{text}\n" for image, text in rows)
    lines = "".join(json.dumps({"image": image, "caption": text}) + "\n" for image, text in rows)
    assert [sample.captions for sample in read("c.tsv", tsv)] == expected
    assert [sample.captions for sample in read("c.jsonl", lines)] == expected


def test_a_caption_file_and_its_images_may_lie_in_a_bucket(folder, read, settings):
    here = read("c.csv", CSV + "photos/gone.jpg,not there\n")
    bucket = fsspec.filesystem("memory")
    for path in (*folder.glob("photos/?.*"), folder / "c.csv"):
        bucket.pipe_file(f"/pairs/{path.relative_to(folder)}", path.read_bytes())
    try:
        there = open_source("pairs:memory://pairs/c.csv", "train", settings())
        assert [there[i] for i in range(3)] == [here[i] for i in range(3)]
        assert there.fingerprint == here.fingerprint
        for source in (here, there):
            with pytest.raises(BadSample, match="missing-file"):
                source[3]
        with pytest.raises(FileNotFoundError, match="is not there"):
            open_source("pairs:memory://pairs/d.csv", "train", settings())
    finally:
        bucket.rm("/pairs", recursive=True)


def test_an_absolute_path_is_taken_as_it_is(read, folder):
    source = read("c.csv", f"image,text\n{folder}/photos/a.jpg,hello\n")
    assert source[0].captions == ("hello",)


def test_columns_that_are_named_win_over_known_names(read):
    text = "image,picture,caption,alt2\nnone.jpg,photos/a.jpg,wrong,right\n"
    source = read("c.csv", text, image_column="picture", caption_column="alt2")
    assert source[0].captions == ("right",)


def test_a_list_of_captions_in_json_gives_several(read):
    source = read("c.jsonl", '{"image": "photos/a.jpg", "captions": ["one", " ", "two"]}\n')
    assert source[0].captions == ("one", "two")


def test_byte_order_marks_and_blank_lines_do_no_harm(read):
    assert len(read("c.csv", "\ufeffimage,caption\n\nphotos/a.jpg,one\n\n")) == 1
    assert len(read("c.jsonl", '\ufeff\n{"image": "photos/a.jpg", "caption": "one"}\n\n')) == 1


def test_a_copy_in_another_process_reads_the_same(read):
    source = read("c.csv", CSV)
    assert pickle.loads(pickle.dumps(source))[2] == source[2]


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(read):
    one, same, other = (
        read("a.csv", CSV),
        read("b.csv", CSV),
        read("c.csv", CSV + "photos/a.jpg,x\n"),
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("photos/a.jpg,", "missing-caption"),
        ("photos/a.jpg,      ", "missing-caption"),
        ("photos/a.jpg", "missing-caption"),
        (",a caption", "missing-image"),
        ("photos/gone.jpg,a caption", "missing-file"),
        ("photos,a caption", "not-a-file"),
        (f"{'n' * 300}.jpg,a caption", "unreadable-file"),
        ("photos/a.jpg/b.jpg,a caption", "unreadable-file"),
        ("photos/loop.jpg,a caption", "unreadable-file"),
        ("photos/a\0.jpg,a caption", "unreadable-file"),
        ("nowhere://photos/a.jpg,a caption", "unreadable-file"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(read, row, reason):
    source = read("c.csv", CSV + row + "\n")
    assert len(source) == 4
    with pytest.raises(BadSample) as caught:
        source[3]
    assert caught.value.reason == reason and caught.value.key.startswith("c.csv/4")


@pytest.mark.parametrize(
    ("name", "text", "columns", "message"),
    [
        ("e.csv", "", {}, r"e\.csv is empty"),
        ("e.csv", "image,caption\n", {}, r"e\.csv names its columns but has no rows"),
        ("e.jsonl", "\n", {}, r"e\.jsonl is empty"),
        ("e.csv", "a,b\n1,2\n", {}, r"e\.csv has no column .* the image; its columns are a, b"),
        ("e.csv", "image,b\n1,2\n", {}, r"the caption; its columns are image, b.*data\.caption_column"),
        ("e.csv", CSV, {"caption_column": "text"}, r"no column 'text' \(data\.caption_column\)"),
        ("e.csv", CSV, {"image_column": "url"}, r"no column 'url' \(data\.image_column\)"),
        ("e.csv", "image,caption\nphotos/a.jpg,1\nphotos/b.png,2.5\n", {}, "'caption' holds numbers"),
        ("e.jsonl", "{'image': 1}\n", {}, r"e\.jsonl line 1 is not JSON"),
        ("e.jsonl", "[1]\n", {}, r"e\.jsonl line 1 is not a JSON object"),
        ("e.xls", CSV, {}, r"ends in \.csv, \.tsv"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_by_name(read, name, text, columns, message):
    with pytest.raises(ValueError, match=message):
        read(name, text, **columns)


@pytest.mark.parametrize("name", ["e.jsonl", "e.json"])
def test_lists_that_nest_without_end_are_no_json(read, name):
    with pytest.raises(
        ValueError, match=rf"e\.{name[2:]}.* is not JSON: its lists or objects nest"
    ):
        read(name, 100_000 * "[")


def test_a_file_in_another_encoding_is_refused_by_name(folder, settings):
    (folder / "l.csv").write_bytes("image,caption\nphotos/a.jpg,tr\xeas\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"l\.csv line 2 is not text in UTF-8 \(byte 0xea"):
        open_source(f"pairs:{folder}/l.csv", "train", settings())


def test_a_missing_file_is_named(folder, settings):
    with pytest.raises(FileNotFoundError, match=r"none\.csv is not there"):
        open_source(f"pairs:{folder}/none.csv", "train", settings())
    with pytest.raises(FileNotFoundError, match=r"photos is a folder"):
        open_source(f"pairs:{folder}/photos", "train", settings())


def test_a_file_whose_images_are_all_elsewhere_is_refused_at_start(read):
    with pytest.raises(
        FileNotFoundError, match=r"none of its first 2 images is there; the first is 'x\.jpg'"
    ):
        read("c.csv", "image,caption\nx.jpg,one\ny.jpg,two\n")


LABELLED = "image,caption,label\nphotos/a.jpg,one,1\nphotos/b.png,,0\nphotos/c.webp,three,\n"


def test_a_column_of_labels_is_found_and_named_by_the_file_beside_it(read, folder):
    (folder / "classnames.txt").write_text("cat\ndog\n")
    source = read("c.csv", LABELLED)
    assert source.classes == ("cat", "dog")
    assert [(s.label, s.captions) for s in source] == [(1, ("one",)), (0, ("cat",)), (None, ("three",))]  # fmt: skip
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_labels_alone_can_be_evaluated_and_not_trained_on(read, folder):
    text = "image,label\nphotos/a.jpg,1\nphotos/b.png,0\n"
    source = read("c.csv", text, split="test")
    assert [(s.label, s.captions) for s in source] == [(1, ("",)), (0, ("",))]
    with pytest.raises(ValueError, match=r"no captions, only labels without names.*classnames"):
        read("c.csv", text)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    assert [s.captions for s in read("c.csv", text)] == [("dog",), ("cat",)]


def test_names_of_classes_are_labels_where_the_column_is_named(read):
    text = "image,class\nphotos/a.jpg,dog\nphotos/b.png,cat\n"
    source = read("c.csv", text, label_column="class")
    assert source.classes == ("cat", "dog")
    assert [(s.label, s.captions) for s in source] == [(1, ("dog",)), (0, ("cat",))]
    with pytest.raises(ValueError, match=r"'class' has 'cat' in it.*data\.label_column"):
        read("c.csv", text)
    with pytest.raises(ValueError, match=r"no column 'kind' \(data\.label_column\)"):
        read("c.csv", text, label_column="kind")


def test_a_column_that_is_only_called_label_changes_nothing(read):
    source = read("c.csv", "image,caption,label\nphotos/a.jpg,one,made by hand\n")
    assert source.classes is None and source[0].label is None and source[0].captions == ("one",)

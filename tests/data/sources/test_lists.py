"""Lists as people and programs write them: every pair right, or the line that is wrong is named."""

import gzip
import json

import numpy as np
import pytest

from clip_jax.data.samples import BadSample
from clip_jax.data.sources import list_scan
from clip_jax.data.sources.registry import open_source
from clip_jax.evaluation.annotations import read_annotations
from clip_jax.evaluation.evaluators.retrieval import retrieval


@pytest.fixture
def read(tmp_path, settings, encode):
    """Twelve pictures, 00.png to 11.png, and a list beside them that is opened."""
    for number in range(12):
        (tmp_path / f"{number:02}.png").write_bytes(encode((20 * number, 100, 200)))

    def _read(name, text, split="train", **changes):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(data)
        return open_source(f"pairs:{tmp_path / name}", split, settings(**changes))

    return _read


def rows(separator=",", count=4, start=0):
    return "".join(f"{k:02}.png{separator}picture number {k}\n" for k in range(start, count))


def captions(source):
    return [sample.captions for sample in source]


NUMBERS = [(f"picture number {k}",) for k in range(12)]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.txt"])
def test_the_separator_is_the_one_of_the_header(read, separator, name):
    source = read(name, f"filepath{separator}title\n{rows(separator)}")
    assert captions(source) == NUMBERS[:4]


def test_a_separator_that_is_named_wins_over_the_look_of_the_header(read):
    text = "image;caption,title\n" + "".join(f"{k:02}.png;x,picture number {k}\n" for k in range(3))
    with pytest.raises(FileNotFoundError, match="none of its first 3 images"):
        read("l.csv", text, separator="comma", image_column="image;caption")
    assert captions(read("l.csv", text, separator="semicolon", caption_column="caption,title")) == [
        (f"x,picture number {k}",) for k in range(3)
    ]
    with pytest.raises(ValueError, match=r"data\.separator='<>' is not one character"):
        read("l.csv", text, separator="<>")


FLICKR = """image_name| comment_number| comment
00.png| 0| picture number 0 view 0 .
00.png| 1| picture number 0 view 1 .
01.png| 0| picture number 1 view 0 .
01.png| 1   picture number 1 without its bar .
"""


def test_flickr30k_with_bars_has_its_captions_whole_and_its_broken_row_counted(read):
    source = read("results.csv", FLICKR)
    assert source[0].captions == ("picture number 0 view 0 .", "picture number 0 view 1 .")
    assert source[1].captions == ("picture number 1 view 0 .",)
    with pytest.raises(BadSample, match=r"01\.png: missing-caption"):
        source[2]
    assert any("1 rows have fewer fields than the header, the first in line 5" in n for n in source.notes)  # fmt: skip
    whole = read("results.csv", FLICKR, group_rows=False)
    assert len(whole) == 4 and whole[1].captions == ("picture number 0 view 1 .",)


@pytest.mark.parametrize(("name", "separator"), [("t.tsv", "\t"), ("t.csv", ",")])
def test_a_quote_that_never_closes_is_refused_by_its_line_or_read_whole(read, name, separator):
    text = f"filepath{separator}title\n" + rows(separator, 12).replace(
        "picture number 3\n", '"best picture number 3\n'
    )
    with pytest.raises(ValueError, match=rf"{name} line 5: a quote opens.*data\.quoting"):
        read(name, text)
    source = read(name, text, quoting="none")
    assert len(source) == 12 and source[3].captions == ('"best picture number 3',)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ('04.png,"and one more"\n', "line 3: a quote opens"),  # the next quote closes it
        ('04.png,said "so"\n05.png,"and more"\n', "line 3: a quote opens"),
        (
            '04.png,a plain one\n05.png,ends here"\n',
            r"line 3.*would hide 2 lines, such as '04\.png",
        ),
    ],
)
def test_a_quote_that_closes_some_rows_later_is_refused_by_its_line(read, after, message):
    with pytest.raises(ValueError, match=message):
        read("l.csv", f'image,caption\n00.png,picture number 0\n01.png,"open\n{after}')


def test_a_caption_in_quotes_may_go_over_several_lines(read, monkeypatch):
    text = 'image,caption\n00.png,"one, with\ntwo lines and ""quotes"""\n' + rows(count=3, start=1)
    assert captions(read("l.csv", text)) == [('one, with two lines and "quotes"',), *NUMBERS[1:3]]
    monkeypatch.setattr(list_scan, "BLOCK", 40)  # the row goes over two blocks
    assert captions(read("m.csv", text)) == captions(read("l.csv", text))


def test_more_fields_than_the_header_are_refused_by_their_line(read):
    text = "image,caption\n" + rows(count=2).replace("picture number 1", "a plate, two forks")
    with pytest.raises(
        ValueError, match=r"l\.csv line 3 has 3 fields and the header 2.*'01\.png,a plate,two"
    ):
        read("l.csv", text)
    assert captions(read("l.csv", "image,caption\n00.png,picture number 0,,\n")) == NUMBERS[:1]


def test_spaces_around_fields_are_no_part_of_them(read):
    text = "caption, image\n" + "".join(f"picture number {k}, {k:02}.png \n" for k in range(3))
    assert captions(read("l.csv", text)) == NUMBERS[:3]
    assert captions(read("q.csv", 'image, caption\n00.png, "a, b"\n')) == [("a, b",)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_with_a_byte_order_mark_are_recognised(read, encoding):
    source = read("l.csv", "image,caption\n00.png,três\n".encode(encoding))
    assert captions(source) == [("três",)]


def test_bytes_that_are_no_text_are_named_by_line_or_read_in_the_encoding_that_is_named(read):
    data = ("image,caption\n" + rows(count=3) + "03.png,três\n").encode("latin-1")
    with pytest.raises(
        ValueError, match=r"line 5 is not text in UTF-8 \(byte 0xea.*data\.encoding"
    ):
        read("l.csv", data)
    assert read("l.csv", data, encoding="latin-1")[3].captions == ("três",)
    with pytest.raises(ValueError, match="cannot be read as latin-99"):
        read("l.csv", data, encoding="latin-99")


def test_captions_that_are_no_text_are_missing_or_refused_with_column_and_type(read):
    values = ["picture number 0", float("nan"), None, True, [float("nan"), "picture number 4"], 7]
    lines = (json.dumps({"image": f"{k:02}.png", "caption": v}) for k, v in enumerate(values))
    source = read("l.jsonl", "\n".join(lines))
    assert source[0].captions == NUMBERS[0] and source[4].captions == NUMBERS[4]
    for number in (1, 2, 3, 5):
        with pytest.raises(BadSample, match="missing-caption"):
            source[number]
    nested = (
        '{"image": "00.png", "sentences": [{"raw": "one", "id": 1}, {"raw": "two", "id": 2}]}\n'
    )
    with pytest.raises(ValueError, match=r"line 1: the caption column 'sentences' holds dict with the fields raw, id.*sentences\.raw"):  # fmt: skip
        read("n.jsonl", nested)
    assert read("n.jsonl", nested, caption_column="sentences.raw")[0].captions == ("one", "two")
    with pytest.raises(ValueError, match="line 2: the caption column 'caption' holds dict"):
        read("m.jsonl", '{"image": "00.png", "caption": "a"}\n{"image": "01.png", "caption": {"a": 1}}\n')  # fmt: skip


@pytest.mark.parametrize("broken", ["picture 5 \ud83d", "picture\x00 5", "picture 5 \ufffd"])
def test_characters_that_are_no_text_never_reach_a_tokenizer(read, broken):
    lines = [json.dumps({"image": f"{k:02}.png", "caption": broken}) for k in range(2)]
    source = read("l.jsonl", "\n".join([*lines, json.dumps({"image": "02.png", "caption": "a"})]))
    assert source[0].captions == ("picture 5",) and source[0].had_broken_text
    assert not source[2].had_broken_text


def test_a_picture_in_base64_is_refused_in_one_short_line(read):
    for start in ("", "data:image/png;base64,"):
        with pytest.raises(ValueError, match=r"l\.tsv: its first image is base64") as caught:
            read("l.tsv", f"image\tcaption\n{start}{'iVBORw0KGgo' * 900}\ta picture\n")
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_numbered_caption_columns_are_all_captions(read):
    text = "file_name,caption_0,caption_1\n00.png,one,two\n01.png,three,\n"
    assert captions(read("metadata.csv", text)) == [("one", "two"), ("three",)]


# ------------------------------------------------------------------- rows of one image


def five_rows(name):
    if name.endswith("jsonl"):
        return "".join(
            json.dumps({"image": f"{k:02}.png", "caption": f"picture {k} view {v}"}) + "\n"
            for v in range(5) for k in range(4)
        )  # fmt: skip
    return "image,caption\n" + "".join(
        f"{k:02}.png,picture {k} view {v}\n" for v in range(5) for k in range(4)
    )


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_rows_of_an_image_are_one_sample_wherever_they_stand(read, name, split):
    source = read(name, five_rows(name), split=split)
    assert captions(source) == [tuple(f"picture {k} view {v}" for v in range(5)) for k in range(4)]
    assert "20 rows are 4 images" in source.notes[0]
    apart = read(name, five_rows(name), split=split, group_rows=False)
    assert len(apart) == 20 and apart.fingerprint != source.fingerprint
    assert captions(apart)[:2] == [("picture 0 view 0",), ("picture 1 view 0",)]


def test_samples_keep_the_order_of_their_first_rows_across_blocks(read, monkeypatch):
    text = "image,caption\n" + "".join(
        f"{k:02}.png,{v} of {k}\n" for v in range(9) for k in (7, 3, 11, 0) for _ in range(2)
    )
    whole = captions(read("l.csv", text))
    monkeypatch.setattr(list_scan, "BLOCK", 64)
    assert captions(read("m.csv", text)) == whole
    assert [texts[0] for texts in whole] == ["0 of 7", "0 of 3", "0 of 11", "0 of 0"]


def test_rows_of_one_image_with_other_labels_stay_apart(read, tmp_path):
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    text = "image,caption,label\n00.png,one pet,0\n00.png,two pets,1\n00.png,three pets,0\n"
    source = read("l.csv", text)
    assert [(s.label, s.captions) for s in source] == [(0, ("one pet", "three pets")), (1, ("two pets",))]  # fmt: skip


def test_a_list_without_repeated_images_keeps_its_old_order_and_fingerprint(read):
    grouped, apart = (
        read("l.csv", "image,caption\n" + rows(), group_rows=g) for g in (True, False)
    )
    assert grouped.fingerprint == apart.fingerprint and captions(grouped) == captions(apart)


# ------------------------------------------------------------------- layouts of their own


def test_coco_captions_are_read_with_the_folder_beside_them(tmp_path, settings, encode):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    images = [{"id": 7 + k, "file_name": f"{k:012}.png"} for k in range(3)]
    notes = [
        {"image_id": 7 + k, "caption": f"picture {k} view {v}"} for v in range(2) for k in range(2)
    ]
    for image in images:
        (tmp_path / "val2017" / image["file_name"]).write_bytes(encode((1, 2, 3)))
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    source = open_source(f"pairs:{path}", "train", settings())
    assert captions(source) == [(f"picture {k} view 0", f"picture {k} view 1") for k in range(2)]
    assert source.notes == ("1 images have no caption",)
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 7, "bbox": []}]}))
    with pytest.raises(ValueError, match=r"captions_val2017\.json holds no captions \(.*bbox"):
        open_source(f"pairs:{path}", "train", settings())


def test_karpathys_file_says_which_images_are_for_tests(read, tmp_path, settings):
    images = [
        {"filename": f"{k:02}.png", "split": split, "sentences": [{"raw": f"picture number {k}"}]}
        for k, split in enumerate(["train", "test", "restval", "val"])
    ]
    text = json.dumps({"images": images})
    assert captions(read("dataset.json", text)) == [NUMBERS[0], NUMBERS[2]]
    assert captions(read("dataset.json", text, split="test")) == [NUMBERS[1]]
    assert read("dataset.json", text).notes == (
        "images of other splits are skipped: 1 test, 1 val",
    )


def test_flickrs_token_file_and_lists_of_objects_are_read(read):
    token = "00.png#0\tone\n00.png#1\ttwo\n01.png#0\tthree\n"
    assert captions(read("r.token", token)) == [("one", "two"), ("three",)]
    objects = json.dumps([{"image": "00.png", "caption": "one"}, {"image": "01.png", "caption": ["a", "b"]}])  # fmt: skip
    assert captions(read("l.json", objects)) == [("one",), ("a", "b")]
    with pytest.raises(ValueError, match=r"x\.json is none of the JSON layouts"):
        read("x.json", '{"a": 1}')
    with pytest.raises(ValueError, match=r"x\.token line 1 is not NAME#NUMBER"):
        read("x.token", "00.png\tone\n")


@pytest.mark.parametrize("group_rows", [True, False])
def test_a_perfect_model_finds_every_image_and_caption_of_a_list_with_five_rows_an_image(
    read, mesh, group_rows
):
    source = read("test.csv", five_rows("test.csv"), split="test", group_rows=group_rows)
    annotations = read_annotations(source, range(len(source)))
    image_of_text_M = np.array([n for n, one in enumerate(annotations) for _ in one.captions])
    pictures = [int(text.split()[1]) for one in annotations for text in one.captions]
    first = [int(one.captions[0].split()[1]) for one in annotations]
    z_text_ME, z_image_NE = (
        np.eye(4, dtype=np.float32)[pictures],
        np.eye(4, dtype=np.float32)[first],
    )
    found = retrieval(z_image_NE, z_text_ME, image_of_text_M, mesh=mesh(1))
    recall = found["image_to_text_recall_at_1"], found["text_to_image_recall_at_1"]
    assert recall == ((1.0, 1.0) if group_rows else (pytest.approx(0.2), pytest.approx(0.2)))


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl"])
def test_a_list_that_was_written_as_text_is_several_captions(read, name):
    """Flickr30k's CSV and pandas write lists so; what only looks like one stays a text."""
    cells = [json.dumps(["a dog", 'it\'s "a" cat']), "['one', 'two']", "[sic] a plate", "[1, 2]"]
    if name == "l.jsonl":
        text = "".join(
            json.dumps({"image": f"{k:02}.png", "raw": c}) + "\n" for k, c in enumerate(cells)
        )
    else:
        separator = "," if name == "l.csv" else "\t"
        text = f"image{separator}raw\n"
        for number, cell in enumerate(cells):
            cell = cell.replace('"', '""')
            text += f'{number:02}.png{separator}"{cell}"\n'
    expected = [("a dog", 'it\'s "a" cat'), ("one", "two"), ("[sic] a plate",), ("[1, 2]",)]
    assert captions(read(name, text, caption_column="raw")) == expected


@pytest.mark.parametrize("cell", [{"raw": "a dog"}, [{"raw": "a dog"}], [1, 2]])
@pytest.mark.parametrize("write", [json.dumps, str])
def test_objects_that_were_written_as_text_are_refused(read, cell, write):
    text = "image\tcaption\n" + "".join(f"{k:02}.png\t{write(cell)}\n" for k in range(3))
    with pytest.raises(ValueError, match=r"l\.tsv: the caption column 'caption' holds objects"):
        read("l.tsv", text, quoting="none")


@pytest.mark.parametrize("place", [0, 3])
def test_a_carriage_return_inside_of_a_field_is_refused_by_its_line(read, place):
    lines = rows(count=4).splitlines()
    lines[place] = lines[place].replace("number", "num\rber")
    with pytest.raises(ValueError, match=rf"l\.csv line {place + 2}: a carriage return .*quoting"):
        read("l.csv", "image,caption\n" + "\n".join(lines) + "\n")
    quoted = f'image,caption\r\n00.png,"a\rb"\r\n{rows(start=1)}'
    assert captions(read("l.csv", quoted)) == [("a b",), *NUMBERS[1:4]]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16"])
def test_long_byte_order_marks_are_told_from_short_ones(read, encoding):
    assert captions(read("l.csv", f"image,caption\n{rows()}".encode(encoding))) == NUMBERS[:4]


def test_utf16_without_a_mark_is_refused_with_the_setting_that_reads_it(read):
    data = f"image,caption\n{rows()}".encode("utf-16-le")
    with pytest.raises(ValueError, match=r"l\.csv has bytes of zero.*data\.encoding"):
        read("l.csv", data)
    assert captions(read("l.csv", data, encoding="utf-16-le")) == NUMBERS[:4]


def test_lines_of_objects_are_read_whatever_the_file_is_called(read):
    text = "".join(f'{{"image": "{k:02}.png", "text": "picture number {k}"}}\n' for k in range(3))
    assert captions(read("l.json", text)) == NUMBERS[:3]


IMAGES = [{"id": 1, "file_name": "00.png"}, {"id": 2, "file_name": "01.png"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [*IMAGES, {"id": 1, "file_name": "02.png"}], "annotations": [{"image_id": 1, "caption": "a"}]}, "several images with the id 1"),
        ({"images": IMAGES, "annotations": [{"image_id": "1", "caption": "a"}]}, r"image_id '1', and the first image has the id 1"),
        ({"images": [IMAGES[0], "01.png"], "annotations": [{"image_id": 1, "caption": "a"}]}, "COCO's layout, but an entry"),
        ({"images": IMAGES, "annotations": [7]}, "COCO's layout, but an entry"),
        ({"images": IMAGES, "annotations": {"1": "a"}}, "COCO's layout, but an entry"),
        ({"images": [{"filename": "a", "sentences": [{"raw": "a"}]}, {"filename": "b"}]}, "Karpathy's layout, but an entry"),
        ({"images": [{"filename": "a", "sentences": ["a"]}]}, "Karpathy's layout, but an entry"),
    ],
)  # fmt: skip
def test_layouts_with_odd_entries_are_refused_by_the_file(read, content, message):
    with pytest.raises(ValueError, match=rf"l\.json.*{message}"):
        read("l.json", json.dumps(content))


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "N/A"])
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_words_that_stand_for_no_value_are_missing_captions(read, word, name):
    text = f"image,caption\n{rows(count=3)}03.png,{word}\n04.png,{word} of it\n"
    if name == "l.jsonl":
        lines = [dict(zip(("image", "caption"), row.split(","))) for row in text.splitlines()[1:]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
    source = read(name, text)
    with pytest.raises(BadSample, match=r"03\.png: missing-caption"):
        source[3]
    assert source[4].captions == (f"{word} of it",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"image,caption\n", mtime=0), "compressed with gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>\n", "a web page"),
        (b"PK\x03\x04" + bytes(50), "a zip archive"),
    ],
    ids=["gzip", "lfs", "html", "zip"],
)
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_another_file_in_place_of_a_list_is_called_what_it_is(read, data, message, name):
    with pytest.raises(ValueError, match=rf"{name} is .*{message}|{name} is {message}"):
        read(name, data)


@pytest.mark.parametrize("values", [(12, 13.5), (True, False)])
@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
def test_a_column_without_any_text_is_refused_by_its_kind(read, name, values):
    if name == "l.csv":
        text = "image,caption\n" + "".join(f"{k:02}.png,{v}\n" for k, v in enumerate(values))
    else:
        rows = ({"image": f"{k:02}.png", "caption": v} for k, v in enumerate(values))
        text = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(ValueError, match=r"'caption' holds (numbers|float|truth values|bool), not"):
        read(name, text)


def test_lists_that_were_written_with_gaps_have_the_texts_alone(read):
    rows = ["01.png,\"['a', None]\"", '02.png,"[null, ""b""]"', "03.png,[]", "04.png,[None]"]
    source = read("l.csv", "\n".join(["image,caption", "00.png,x", *rows]))
    assert [source[k].captions for k in range(3)] == [("x",), ("a",), ("b",)]
    for number in (3, 4):
        with pytest.raises(BadSample, match="missing-caption"):
            source[number]


def test_labels_that_are_not_read_are_named_and_those_below_zero_are_none(read):
    source = read("l.csv", "image,caption,label\n00.png,a,0\n01.png,b,cat\n", "test")
    assert [sample.label for sample in source] == [None, None]
    assert any("'label' holds 'cat'" in note for note in source.notes)
    source = read("l.csv", "image,caption,label\n00.png,a,3\n01.png,b,-1\n02.png,c,\n", "test")
    assert [sample.label for sample in source] == [3, None, None] and not source.notes


def test_a_list_of_objects_in_one_piece_is_told_its_ending(read):
    with pytest.raises(ValueError, match=r"line 1 is not JSON.*is named \.json"):
        read("l.jsonl", '[{"image": "00.png", "caption": "a"},\n{"image": "01.png"}]\n')


def test_zeros_in_the_first_rows_are_not_another_encoding(read):
    assert captions(read("l.csv", "image,caption\n00.png,a\0b\n")) == [("ab",)]


@pytest.mark.parametrize("name", ["l.csv", "l.jsonl"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_path_with_a_dot_before_it_is_the_same_image(read, name, quote):
    paths = ("./00.png", "00.png", "././01.png", "01.png", "./00.png")
    if name == "l.jsonl":
        rows = [json.dumps({"image": path, "caption": f"text {k}"}) for k, path in enumerate(paths)]
    else:
        rows = [f"{quote}{path}{quote},text {k}" for k, path in enumerate(paths)]
        rows.insert(0, "image,caption")
    source = read(name, "\n".join(rows) + "\n")
    assert captions(source) == [("text 0", "text 1", "text 4"), ("text 2", "text 3")]


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("['one' 'two']", ("one", "two")),  # as NumPy writes an array
        ("['one'\n 'it''s two']".replace("''", "\\'"), ("one", "it's two")),
        ("('one', 'two')", ("one", "two")),
        ("('one',)", ("one",)),
        ("(one of two)", ("(one of two)",)),
        ("(1, 2)", ("(1, 2)",)),
        ("('one')", ("('one')",)),
    ],
)
def test_arrays_and_tuples_that_were_written_as_text_are_several_captions(read, cell, texts):
    lines = [{"image": "00.png", "caption": "plain"}, {"image": "01.png", "caption": cell}]
    source = read("l.jsonl", "\n".join(map(json.dumps, lines)))
    assert source[1].captions == texts


@pytest.mark.parametrize("text", ["\u200b", "\ufeff \u200d", "\u00a0", "\u3000\u2003"])
def test_characters_that_nobody_sees_are_no_caption(read, text):
    source = read("l.csv", f"image,caption\n00.png,a\n01.png,{text}\n")
    with pytest.raises(BadSample, match="missing-caption"):
        source[1]


@pytest.mark.parametrize(
    ("value", "kind"), [(["00.png"], "list"), (7, "int"), ({"bytes": "x"}, "dict"), (True, "bool")]
)
def test_images_that_are_no_paths_are_refused_by_column_and_type(read, value, kind):
    with pytest.raises(ValueError, match=rf"l\.jsonl: the image column 'image' holds {kind}, not"):
        read("l.jsonl", json.dumps({"image": value, "caption": "one"}))


@pytest.mark.parametrize("order", ["le", "be"])
def test_the_byte_order_that_fits_is_proposed(read, order):
    data = f"image,caption\n{rows()}".encode(f"utf-16-{order}")
    with pytest.raises(ValueError, match=f"such as utf-16-{order}"):
        read("l.csv", data)


def test_what_a_list_is_comes_before_how_its_lines_end(read):
    data = gzip.compress(b"image,caption\n", mtime=0x0D0D0D0D)  # the date holds carriage returns
    assert b"\r" in data and b"\n" not in data
    with pytest.raises(ValueError, match="compressed with gzip"):
        read("l.csv", data)


def test_a_line_that_is_no_object_is_shown_in_one_line(read):
    with pytest.raises(ValueError, match=r"line 1 is not a JSON object: \[1\]$") as caught:
        read("l.jsonl", "[1]\n")
    assert "\n" not in str(caught.value)


def test_labels_of_a_list_in_json_are_read(read):
    lines = [{"image": f"{k:02}.png", "caption": f"text {k}", "label": k} for k in range(3)]
    for name, text in (
        ("l.json", json.dumps(lines)),
        ("l.jsonl", "\n".join(map(json.dumps, lines))),
    ):
        source = read(name, text, "test")
        assert [(s.label, s.captions) for s in source] == [(k, (f"text {k}",)) for k in range(3)]


def test_columns_that_the_first_row_lacks_are_columns_too(read):
    lines = [{"image": "00.png"}, {"image": "01.png", "text_0": "one"},
             {"label": 1, "image": "02.png", "text_0": "two", "text_1": "also two"}]  # fmt: skip
    source = read("l.jsonl", "\n".join(map(json.dumps, lines)), "test")
    assert [(source[k].label, source[k].captions) for k in (1, 2)] == [
        (None, ("one",)),
        (1, ("two", "also two")),
    ]
    with pytest.raises(BadSample, match=r"00\.png: missing-caption"):
        source[0]


@pytest.mark.parametrize("end", [",,", ""])  # Excel leaves them out further down
def test_columns_without_a_name_at_the_end_of_a_header_are_none(read, end):
    text = "image,caption,,\r\n" + rows().replace("\n", f"{end}\r\n")
    source = read("l.csv", text)
    assert captions(source) == NUMBERS[:4] and not source.notes
    inside = "image,,caption,\n" + "".join(f"{k:02}.png,,picture number {k},\n" for k in range(4))
    assert captions(read("l.csv", inside)) == NUMBERS[:4]


def test_columns_that_look_like_captions_or_splits_and_are_not_read_are_named(read):
    header = "image,caption,caption.1,Title,split\n"
    text = header + "".join(f"{k:02}.png,a{k},b{k},c{k},test\n" for k in range(2))
    source = read("l.csv", text)
    assert captions(source) == [("a0",), ("a1",)]
    (others, splits) = source.notes
    assert "not read: caption.1, Title; data.caption_column=caption,caption.1,Title" in others
    assert "the column 'split' is not looked at" in splits
    source = read("l.csv", text, caption_column="caption,caption.1,Title")
    assert captions(source)[0] == ("a0", "b0", "c0") and source.notes == (splits,)


@pytest.mark.parametrize("text", [rows(), rows("\t"), "a dog\thttps://example.org/0?w=1\n"])
def test_a_list_without_a_header_is_told_to_have_one(read, text):
    with pytest.raises(
        ValueError, match=r"l\.csv has a row in the place of its header, '.*': write"
    ):
        read("l.csv", text)


def test_flickr8k_is_read_under_its_own_name(read):
    text = "".join(f"{k:02}.png#{j}\tpicture {k} view {j} .\n" for k in range(2) for j in range(2))
    source = read("Flickr8k.token.txt", text)
    assert captions(source) == [
        (f"picture {k} view 0 .", f"picture {k} view 1 .") for k in range(2)
    ]


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_path_with_two_slashes_after_its_dot_is_no_path_from_the_root_on(read, quote):
    source = read("l.csv", f"image,caption\n{quote}.//00.png{quote},a\n01.png,b\n")
    assert captions(source) == [("a",), ("b",)]


def test_images_that_are_not_there_are_said_with_what_may_mend_it(read):
    with pytest.raises(FileNotFoundError, match=r"write / for each \\"):
        read("l.csv", "image,caption\nimages\\00.png,a\n")
    with pytest.raises(FileNotFoundError, match=r"data\.image_column names another.* 'image'$"):
        read("l.csv", "image,image_path,caption\n0,00.png,a\n")


def test_a_json_list_that_is_none_is_told_what_it_is(read):
    with pytest.raises(ValueError, match=r"l\.json is compressed with gzip"):
        read("l.json", gzip.compress(b"[]"))
    with pytest.raises(ValueError, match=r"l\.json is not JSON.*set data\.encoding"):
        read("l.json", '[{"image": "00.png", "caption": "caf\u00e9"}]'.encode("latin-1"))
    coco = {"images": [{"id": 0}], "annotations": [{"image_id": 0, "caption": "a"}]}
    with pytest.raises(ValueError, match=r"looks like COCO's layout.*'file_name'"):
        read("l.json", json.dumps(coco))

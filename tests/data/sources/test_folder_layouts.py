"""Folders as people have them: captions beside images, lists inside, links, numbers as names."""

import json
import logging

import pytest

from clip_jax.data.images.formats import EXTENSIONS
from clip_jax.data.samples import BadSample
from clip_jax.data.sources.registry import open_source


@pytest.fixture
def write(tmp_path, encode):
    """Write files by path; a number stands for that picture."""

    def _write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = encode((20 * content, 100, 200)) if isinstance(content, int) else content
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return tmp_path

    return _write


def captions(source):
    return [sample.captions for sample in source]


@pytest.mark.parametrize("folder", ["", "00000/", "a/b/c/"])
@pytest.mark.parametrize("ending", ["txt", "json", "caption"])
def test_captions_beside_images_are_their_captions(write, settings, encode, folder, ending):
    def text(k):
        return json.dumps({"caption": f"picture number {k}", "key": k}) if ending == "json" else f"picture number {k}\n"  # fmt: skip

    files = {f"{folder}{k:03}.png": k for k in range(3)}
    files |= {f"{folder}{k:03}.{ending}": text(k) for k in range(3)}
    root = write({**files, "00000_stats.json": "{}", "00000.parquet": b"x"})
    source = open_source(f"folder:{root}", "train", settings())
    assert captions(source) == [(f"picture number {k}",) for k in range(3)]
    assert source[2].image == encode((40, 100, 200)) and source.classes is None
    assert f"3 .{ending}" in source.notes[0] and "2 files are skipped" in source.notes[1]


def test_an_image_without_its_text_is_counted_and_named(write, settings):
    root = write({"a.png": 0, "a.txt": "one", "b.png": 1, "c.png": 2, "c.txt": "três".encode("latin-1")})  # fmt: skip
    source = open_source(f"folder:{root}", "train", settings())
    with pytest.raises(BadSample, match=r"b\.png: missing-caption"):
        source[1]
    with pytest.raises(BadSample, match=r"c\.png: caption-not-utf8"):
        source[2]
    assert "1 images have no such file" in source.notes


def test_a_named_field_or_lines_or_labels_beside_images(write, settings):
    root = write({"a.png": 0, "a.json": '{"alt": "one", "label": 1}', "a.txt": "two\nthree\n", "a.cls": "1",
                  "classnames.txt": "cat\ndog\n"})  # fmt: skip
    sample = open_source(f"folder:{root}", "train", settings(caption_column="alt"))[0]
    assert (sample.captions, sample.label) == (("one",), 1)
    assert open_source(f"folder:{root}", "train", settings(caption_lines=True))[0].captions == ("two", "three")  # fmt: skip
    with pytest.raises(ValueError, match="no caption was found beside the images"):
        open_source(f"folder:{root}", "train", settings(caption_column="nothing,txt2"))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_list_inside_the_folder_is_read(write, settings, name):
    rows = [{"file_name": f"{k}.png", "text": f"picture number {k}"} for k in range(3)]
    lines = [json.dumps(row) for row in rows] if name.endswith("l") else ["file_name,text", *(",".join(row.values()) for row in rows)]  # fmt: skip
    root = write({**{f"{k}.png": k for k in range(3)}, name: "\n".join(lines)})
    assert captions(open_source(f"folder:{root}", "train", settings())) == [(f"picture number {k}",) for k in range(3)]  # fmt: skip


@pytest.mark.parametrize("digits", ["{}", "{:03}"])
def test_numbered_folders_are_classes_in_the_order_of_their_numbers(write, settings, digits):
    names = "".join(f"class number {k}\n" for k in range(12))
    root = write({**{f"{digits.format(k)}/a.png": k for k in range(12)}, "classnames.txt": names})
    source = open_source(f"folder:{root}", "test", settings())
    assert [(s.key.split("/")[0], s.label, s.captions[0]) for s in source] == [
        (digits.format(k), k, f"class number {k}") for k in range(12)
    ]


def test_numbers_that_are_one_are_refused_and_digits_as_names_warned_of(write, settings, caplog):
    root = write({"1/a.png": 0, "2/a.png": 1})
    with caplog.at_level(logging.WARNING, "absl"):
        assert open_source(f"folder:{root}", "test", settings()).classes == ("1", "2")
    assert "the classes are called 1 and so on" in caplog.text
    write({"01/a.png": 0})
    with pytest.raises(ValueError, match=r"the class folders 0?1 and 0?1 are one number"):
        open_source(f"folder:{root}", "test", settings())


def test_more_names_than_classes_are_refused(write, settings):
    root = write({"a/a.png": 0, "b/a.png": 1, "classnames.txt": "cat\ndog\ncow\n"})
    with pytest.raises(
        ValueError, match=r"classnames\.txt names 3 classes and there are 2 folders"
    ):
        open_source(f"folder:{root}", "test", settings())


@pytest.mark.parametrize("names", [("train", "val"), ("train2017", "val2017"), ("Train", "Test")])
@pytest.mark.parametrize("text", [False, True])
def test_folders_of_splits_are_refused_naming_both(write, settings, names, text):
    files = {f"{name}/{'' if text else 'cat/'}a.png": 0 for name in names}
    files |= {f"{name}/a.txt": "a cat" for name in names if text}
    with pytest.raises(ValueError, match=f"folders called {min(names)}, {max(names)}"):
        open_source(f"folder:{write(files)}", "train", settings())


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_every_ending_of_the_list_is_an_image_of_its_class(write, settings, encode, extension):
    root = write({f"cat/a.{extension.upper()}": 0, f"dog/a.{extension}": 1})
    assert len(open_source(f"folder:{root}", "test", settings())) == 2


def test_what_is_left_out_is_counted_and_named(write, settings):
    root = write(
        {"cat/a.png": 0, "cat/b.heic": "x", "cat/c.heic": "x", "cat/d.svg": "x", "e.png": 1}
    )
    source = open_source(f"folder:{root}", "test", settings())
    assert len(source) == 1
    assert source.notes[0].startswith("3 files are skipped (2 .heic, 1 .svg), such as ")
    assert source.notes[1] == "1 images lie in no class folder, such as e.png"


def test_links_are_followed_once(write, settings, tmp_path):
    root = (
        write({"set/cat/0.png": 0, "set/cat/1.png": 1, "set/dog/0.png": 2, "else/9.png": 9}) / "set"
    )
    (root / "cat" / "up").symlink_to("..")
    (root / "dog" / "cats").symlink_to("../cat")
    keys = [sample.key for sample in open_source(f"folder:{root}", "test", settings())]
    assert keys == ["cat/0.png", "cat/1.png", "dog/0.png"]
    (root / "bird").symlink_to(tmp_path / "else")  # which lies outside
    keys = [sample.key for sample in open_source(f"folder:{root}", "test", settings())]
    assert keys[0] == "bird/9.png" and len(keys) == 4
    (root / "dog" / "birds").symlink_to(tmp_path / "else")
    assert len(open_source(f"folder:{root}", "test", settings())) == 4


def test_images_alone_are_refused_with_the_layouts_that_are_read(write, settings):
    with pytest.raises(ValueError, match=r"2 images without captions beside them and no folders"):
        open_source(f"folder:{write({'a.png': 0, 'b.png': 1})}", "train", settings())


@pytest.mark.parametrize("folder", ["", "cat/"])
def test_texts_named_after_the_whole_image_are_its_captions(write, settings, folder):
    root = write({f"{folder}a.png": 0, f"{folder}a.png.txt": "one", f"{folder}b.png": 1, f"{folder}b.txt": "two"})  # fmt: skip
    assert captions(open_source(f"folder:{root}", "train", settings())) == [("one",), ("two",)]


@pytest.mark.parametrize("name", ["train_images", "Test-Set", "val2017", "images_val"])
def test_a_folder_whose_name_says_split_among_other_words_is_no_class(write, settings, name):
    root = write({f"{name}/a.png": 0, "cat/b.png": 1})
    with pytest.raises(ValueError, match=f"folders called {name}, which are no classes"):
        open_source(f"folder:{root}", "train", settings())


def test_one_folder_called_train_among_others_is_a_class_of_vehicles(write, settings):
    root = write({"train/a.png": 0, "bus/b.png": 1, "test_tube/c.png": 2, "train_station/d.png": 3})
    source = open_source(f"folder:{root}", "train", settings())
    assert source.classes == ("bus", "test tube", "train", "train station")
    write({"train/cat/a.png": 0})
    with pytest.raises(ValueError, match="folders called train, which are no classes"):
        open_source(f"folder:{root}", "train", settings())


def test_images_that_the_list_in_the_folder_does_not_name_are_counted(write, settings):
    root = write({"a.png": 0, "b.png": 1, "metadata.csv": "file_name,text\na.png,one\n"})
    assert "2 images lie in" in open_source(f"folder:{root}", "train", settings()).notes[-1]
    write({"metadata.jsonl": '{"file_name": "b.png", "text": "two"}\n'})
    with pytest.raises(ValueError, match=r"has metadata\.csv and metadata\.jsonl: read one"):
        open_source(f"folder:{root}", "train", settings())


def test_a_table_in_the_folder_is_named(write, settings):
    root = write({"cat/a.png": 0, "metadata.parquet": b"PAR1"})
    with pytest.raises(ValueError, match=r"read parquet:.*/metadata\.parquet"):
        open_source(f"folder:{root}", "train", settings())


@pytest.mark.parametrize(
    ("folders", "names", "message"),
    [
        (("class1", "class2", "class10"), "c1\nc2\nc10\n", "whether class2 or class10 .* line 2"),
        (("cat", "dog"), "dog\ncat\n", "class folder cat 'dog', as another folder is called"),
        (("big_cat", "dog"), "Dog\nlion\n", "class folder big_cat 'Dog', as another"),
        (("cat", "dog"), "cat\tfeline\ndog\n", "a tab in 1 of 2 lines, and none in 'dog'"),
    ],
)
def test_names_of_classes_in_an_order_that_may_be_another_are_refused(
    write, settings, folders, names, message
):
    root = write({f"{folder}/a.png": 1 for folder in folders} | {"classnames.txt": names})
    with pytest.raises(ValueError, match=message):
        open_source(f"folder:{root}", "test", settings())


def test_names_in_the_order_of_padded_numbers_are_taken(write, settings):
    folders = ("class01", "class02", "class10")
    files = {f"{folder}/a.png": 1 for folder in folders} | {"classnames.txt": "one\ntwo\nten\n"}
    source = open_source(f"folder:{write(files)}", "test", settings())
    assert captions(source) == [("one",), ("two",), ("ten",)]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_lists_in_the_folders_below_are_named(write, settings, name):
    root = write({"a/1.png": 1, f"a/{name}": "x", "b/1.png": 2})
    with pytest.raises(ValueError, match=rf"a/{name} names the images .* read folder:{root}/a$"):
        open_source(f"folder:{root}", "train", settings())


def test_a_folder_around_the_class_folders_is_no_class(write, settings):
    root = write({"images/cat/1.png": 1, "images/dog/1.png": 2})
    with pytest.raises(ValueError, match=rf"single folder, images, .* read folder:{root}/images$"):
        open_source(f"folder:{root}", "train", settings())


@pytest.mark.parametrize("name", ["Images", "photos"])
def test_a_folder_of_pictures_with_a_list_beside_it_is_no_class(write, settings, name):
    files = {f"{name}/0.png": 0, f"{name}/1.png": 1, "captions.txt": "image,caption\n0.png,a\n"}
    root = write(files)
    with pytest.raises(
        ValueError, match=rf"folder, {name}, which is no class.*pairs:{root}/captions"
    ):
        open_source(f"folder:{root}", "train", settings())


def test_pictures_with_a_list_beside_them_are_told_its_source(write, settings):
    root = write({"0.png": 0, "captions.csv": "image,caption\n0.png,a\n"})
    with pytest.raises(ValueError, match=rf"such as pairs:{root}/captions\.csv$"):
        open_source(f"folder:{root}", "train", settings())

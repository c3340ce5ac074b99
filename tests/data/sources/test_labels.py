"""Labels are whole numbers or names, and the names of classes lie beside the data."""

import json
import logging

import pytest

from clip_jax.data.sources.labels import (
    ListLabels,
    check_names,
    class_names,
    hugging_face_names,
    parse_label,
    stand_in,
)


@pytest.mark.parametrize(
    ("value", "label"),
    [(3, 3), ("7", 7), (" 7\n", 7), (b"12", 12), ("3.0", 3), (0, 0), (3.0, 3), (float("nan"), None),
     (-1, None), ("-1", None), ("cat", None), ("", None), (None, None), (True, None), (1.5, None),
     ("3.5", None), ("٣", None), ("9" * 30, None), (b"\xff", None)],
)  # fmt: skip
def test_a_label_is_a_whole_number(value, label):
    assert parse_label(value) == label


def test_names_come_line_by_line_or_by_their_folders(tmp_path):
    folder = tmp_path / "val"
    folder.mkdir()
    assert class_names(str(folder)) is None
    (tmp_path / "classnames.txt").write_text("\ufeffgreat white shark\r\n\ntench\n", "utf-8")
    assert class_names(f"{folder}/") == ("great white shark", "tench")
    assert class_names(str(folder), ["n1", "n2"]) == ("great white shark", "tench")
    (folder / "classnames.txt").write_text("n2\ttench\nn1\tshark\nn3\tcock\n")  # the nearer one
    assert class_names(str(folder), ["n1", "n2"]) == ("shark", "tench")
    assert class_names(str(folder)) == ("tench", "shark", "cock")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n", r"classnames\.txt names 1 classes and there are 2 folders"),
        ("n1\tone\n", r"no name for 1 of 2 folders of classes \(n2\)"),
        ("\n", r"classnames\.txt is empty"),
        (b"\xff\xfe", r"classnames\.txt is not text in UTF-8"),
    ],
)
def test_names_that_do_not_fit_are_refused_by_the_file(tmp_path, text, message):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "classnames.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        class_names(str(tmp_path), ["n1", "n2"])


def test_lists_have_numbers_or_if_asked_for_names():
    numbers = ListLabels({"3", "1", "", "3.0"}, asked=False)
    assert [numbers[text] for text in ("3", "1", "", "3.0")] == [3, 1, None, 3]
    assert numbers.classes is None
    names = ListLabels({"dog", "cat", ""}, asked=True)
    assert [names[text] for text in ("dog", "cat", "")] == [1, 0, None]
    assert names.classes == ("cat", "dog")
    other = ListLabels({"1", "a sentence", "2"}, asked=False)
    assert not other and other.odd == "a sentence" and other["2"] is None
    assert not ListLabels({""}, asked=False) and not ListLabels(set(), asked=False)


def test_hugging_face_says_names_in_the_schema():
    features = {"label": {"names": ["tench", "a_b"], "_type": "ClassLabel"}, "text": {}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    assert hugging_face_names(metadata, "label") == ("tench", "a b")
    assert hugging_face_names(metadata, "text") is None and hugging_face_names(None, "x") is None


def test_a_class_stands_in_for_a_caption():
    assert stand_in(1, ("cat", "dog"), training=True) == ("dog",)
    assert stand_in(None, ("cat",), training=False) == ()
    assert stand_in(7, ("cat",), training=True) == () == stand_in(0, None, training=True)
    assert stand_in(0, None, training=False) == ("",)


def test_labels_without_names_cannot_train_and_are_warned_of(numbered, caplog):
    with pytest.raises(ValueError, match=r"numbered has no captions.*classnames\.txt"):
        check_names(numbered(3), training=True, captioned=False)
    check_names(numbered(3), training=True, captioned=True)
    with caplog.at_level(logging.WARNING, "absl"):
        check_names(numbered(3), training=False, captioned=False)
    assert "evaluation.classes" in caplog.text

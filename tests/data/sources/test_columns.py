"""Columns are found by the names that people use."""

import pytest

from clip_jax.data.sources.columns import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    find_captions,
    find_column,
    find_label,
    refuse_numbers,
)


@pytest.mark.parametrize("columns", [["filepath", "title"], ["Title ", "FilePath"]])
def test_known_names_are_found_in_any_case(columns):
    image = find_column("image", None, IMAGE_NAMES, columns, where="f")
    caption = find_column("caption", None, CAPTION_NAMES, columns, where="f")
    assert image.lower() == "filepath" and caption.strip().lower() == "title"


def test_labels_are_optional_and_make_captions_optional():
    assert find_label(None, ["image", "Class "], where="f") == "Class "
    assert find_label(None, ["image", "text"], where="f") is None
    with pytest.raises(ValueError, match=r"f has no column 'kind' \(data\.label_column\)"):
        find_label("kind", ["image", "label"], where="f")
    assert find_captions(None, ["image", "label"], where="f", optional=True).names == ()
    assert find_captions(None, ["image", "Text"], where="f", optional=True).names == ("Text",)
    with pytest.raises(ValueError, match=r"data\.caption_column"):
        find_captions(None, ["image", "label"], where="f")


def test_numbers_with_one_caption_among_them_are_captions():
    refuse_numbers(["1", "2", "", "route 66"], "text", where="f")
    with pytest.raises(ValueError, match="f: the caption column 'text' holds numbers"):
        refuse_numbers(["1", "2", "", "1e-3"], "text", where="f")


def test_empty_captions_are_not_numbers():
    refuse_numbers(["", "  "], "text", where="f")


def test_labels_of_a_detector_are_no_captions():
    boxes = ["0 0.5 0.5 0.1 0.1", "1 0.25 0.5 0.5 0.1\n7 0.5 0.5 1 1"]
    with pytest.raises(ValueError, match="holds numbers"):
        refuse_numbers(boxes, "caption", where="f")

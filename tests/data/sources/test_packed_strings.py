"""A list of strings in one block gives back what was put in."""

import pickle

import pytest

from clip_jax.data.sources.packed_strings import PackedStrings


def test_texts_come_back_as_they_were():
    texts, expected = PackedStrings(), ["a", "", "três", "\udc80 no text", "x" * 1000]
    for text in expected:
        texts.append(text)
    assert list(texts) == list(pickle.loads(pickle.dumps(texts))) == expected
    with pytest.raises(IndexError):
        texts[5]


def test_shared_strings_are_sent_to_a_process_as_the_name_of_a_file(tmp_path):
    strings = PackedStrings()
    texts = [f"folder/{number:06}-\udce9.jpg" for number in range(5000)]
    for text in texts:
        strings.append(text)
    assert list(pickle.loads(pickle.dumps(strings))) == texts
    strings.share(tmp_path)
    data = pickle.dumps(strings)
    assert len(data) < 500 and list(pickle.loads(data)) == texts == list(strings)
    PackedStrings().share(tmp_path)  # of nothing, no file
    assert len(list((tmp_path / "strings").iterdir())) == 1

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

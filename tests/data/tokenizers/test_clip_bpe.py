"""Tests of CLIP's byte-pair encoding."""

import functools
import itertools
import random

import pytest

from clip_jax.data.tokenizers.clip_bpe import (
    SPECIALS,
    WORDS,
    byte_symbols,
    canonicalize,
    clean,
    encode,
    vocabulary,
)

TEXTS = [
    "a photo of a cat",
    "A Photo,  of\ta\ncat!!",
    "don't we'll I'd they've it's 1984",
    "caf\u00e9 na\u00efve Stra\u00dfe \u0130stanbul",
    "\u4f60\u597d\u4e16\u754c \u0645\u0631\u062d\u0628\u0627 \u041f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f600 \U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "<start_of_text> x <END_OF_TEXT>",
    "x" * 300,
    "\x00\x07 \u200b\ufeff \u202e",
    "",
]


def by_definition(text: str) -> list[int]:
    """The ids of a clean text: the best-ranked pair is merged, again and again (arXiv:1508.07909)."""
    ids, ranks = vocabulary()
    return [ids[piece] for word in WORDS.findall(text) for piece in pieces(word, ranks)]


@functools.cache
def symbols():
    return byte_symbols()


def pieces(word: str, ranks: dict) -> list[str]:
    if word in SPECIALS:
        return [word]
    found = [symbols()[byte] for byte in word.encode()]
    found[-1] += "</w>"
    while len(found) > 1:
        best = min(itertools.pairwise(found), key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged = []
        while found:
            size = 2 if tuple(found[:2]) == best else 1
            merged.append("".join(found[:size]))
            found = found[size:]
        found = merged
    return found


def test_known_captions_have_openais_ids():
    # Published by OpenAI: the ids of its notebook's examples.
    assert encode("a diagram") == [320, 22697]
    assert encode("hello world!") == [3306, 1002, 256]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_encoded_by_the_definition(text):
    assert encode(text) == by_definition(clean(text))


def test_so_is_every_character_alone_and_in_a_word():
    characters = [chr(i) for i in (*range(0x80, 0x3000), *range(0x3000, 0xD800, 97), *range(0x1F300, 0x1FAFF, 7))]  # fmt: skip
    texts = [f"a{c}b {c}" for c in characters]
    different = [t for t in texts if encode(t) != by_definition(clean(t))]
    assert different == []


def test_a_word_without_an_end_takes_no_time_without_an_end():
    word = "".join(random.Random(0).choices("abcdefgh", k=200_000))
    assert len(encode(word)) > 50_000  # by the definition it would be an hour


def test_the_vocabulary_has_its_published_size_and_order():
    ids, ranks = vocabulary()
    assert len(ids) == 49_408
    assert len(ranks) == 48_894
    assert (ids["!"], ids["<start_of_text>"], ids["<end_of_text>"]) == (0, 49_406, 49_407)


def test_cleaning_mends_entities_mojibake_and_white_space():
    assert clean("  Tom &amp;amp; Jerry\n\n&lt;3 ") == "tom & jerry <3"
    assert clean("caf\u00c3\u00a9") == "caf\u00e9"
    assert canonicalize("Hello, world_of: CLIP!") == "hello world of clip"

"""Tests of how texts that are too long lose tokens, and of ids that no model has rows for."""

import numpy as np
import pytest

from clip_jax.data.tokenizers.base import TokenError, Tokenizer
from clip_jax.data.tokenizers.registry import ClipTokenizer


def test_masks_keep_tokens_of_the_text_in_order():
    tokenizer = ClipTokenizer(8)
    text = "one two three four five six seven eight nine ten"
    (ids,) = tokenizer.encode([text])
    assert len(set(ids)) == 10
    rng = np.random.default_rng(0)
    seen = {"truncate": set(), "random": set(), "block": set()}
    for mask, rows in seen.items():
        for _ in range(20):
            kept = tokenizer([text], rng, mask)[0, 1:-1].tolist()
            places = [ids.index(token) for token in kept]
            assert places == sorted(places)
            rows.add(tuple(places))
    assert seen["truncate"] == {tuple(range(6))}
    assert all(places == tuple(range(places[0], places[0] + 6)) for places in seen["block"])
    assert len(seen["block"]) == 5
    assert len(seen["random"]) > 10


def test_without_a_generator_nothing_is_random():
    tokenizer = ClipTokenizer(8)
    text = "one two three four five six seven eight nine ten"
    np.testing.assert_array_equal(tokenizer([text], None, "random"), tokenizer([text]))


class Letters(Tokenizer):
    """Says that it has 26 letters and an end token."""

    kind, vocab_size, end_id, context_length = "letters", 27, 26, 5

    def encode(self, texts):
        return [[ord(letter) - ord("a") for letter in text] for text in texts]


@pytest.mark.parametrize(("text", "found"), [("a|b", 27), ("a[b", -6), ("\N{SNOWMAN}", 9634)])
def test_an_id_beyond_the_vocabulary_is_refused_with_its_text(text, found):
    tokenizer = Letters()
    assert tokenizer(["az"]).tolist() == [[0, 25, 26, 0, 0]]
    with pytest.raises(TokenError, match=rf"kind letters .*the id {found}, .* 0 to 26"):
        tokenizer(["abc", text])
    tokenizer.rows = 100  # a model that has more
    with pytest.raises(TokenError, match="0 to 26"):
        tokenizer([text])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([[1.5]], r"kind letters gives 'a' ids of float64, no whole numbers"),
        ([["1"]], r"kind letters gives 'a' ids of <U"),
        ([[2**32 + 1]], "the id 4294967297,"),  # which is 1 in 32 bits
        ([], "kind letters gives 0 rows of ids for 1 texts"),
        ([[1], [2]], "kind letters gives 2 rows of ids for 1 texts"),
    ],
    ids=str,
)
def test_what_are_no_ids_is_refused(found, message):
    tokenizer = Letters()
    tokenizer.encode = lambda texts: found
    with pytest.raises(ValueError, match=message):
        tokenizer(["a"])


def test_an_id_beyond_the_models_table_is_refused_too():
    tokenizer = Letters()
    tokenizer.rows = 26
    with pytest.raises(TokenError, match=r"the id 26, .* 0 to 25"):
        tokenizer(["a"])
    assert tokenizer([]).shape == (0, 5)

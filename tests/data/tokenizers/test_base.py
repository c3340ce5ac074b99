"""Tests of how texts that are too long lose tokens."""

import numpy as np

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

"""Tests of tokenizers that a tokenizer.json file describes."""

import tokenizers as hf

from clip_jax.data.tokenizers.registry import ClipaTokenizer, HuggingFaceTokenizer


def word_tokenizer(*, with_end: bool) -> bytes:
    words = ["[PAD]", "[UNK]", "a", "red", "circle", "<end>"]
    tokenizer = hf.Tokenizer(
        hf.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    if with_end:
        tokenizer.post_processor = hf.processors.TemplateProcessing(
            single="$A <end>", special_tokens=[("<end>", 5)]
        )
    return tokenizer.to_str().encode()


def test_a_foreign_tokenizer_without_an_end_token_gets_one():
    own = HuggingFaceTokenizer(word_tokenizer(with_end=True), 6)
    added = HuggingFaceTokenizer(word_tokenizer(with_end=False), 6)
    assert own(["a red circle"]).tolist() == [[2, 3, 4, 5, 0, 0]]
    assert added(["a red circle"]).tolist() == [[2, 3, 4, 6, 0, 0]]
    assert (own.vocab_size, added.vocab_size) == (6, 7)


def test_clipa_has_no_end_token():
    tokenizer = ClipaTokenizer(word_tokenizer(with_end=False), 6)
    assert tokenizer(["a red circle"]).tolist() == [[2, 3, 4, 0, 0, 0]]
    assert tokenizer(["a red circle a red circle"]).tolist() == [[2, 3, 4, 2, 3, 0]]
    assert tokenizer.vocab_size == 6


def test_what_stands_before_a_text_is_no_end_token():
    tokenizer = hf.Tokenizer.from_str(word_tokenizer(with_end=False).decode())
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single="[UNK] $A [PAD]", special_tokens=[("[UNK]", 1), ("[PAD]", 0)]
    )
    start = HuggingFaceTokenizer(tokenizer.to_str().encode(), 6)
    assert start(["a red"]).tolist() == [[1, 2, 3, 6, 0, 0]]

"""Tokenizers that a tokenizer.json file of the `tokenizers` library describes."""

from collections.abc import Sequence

import tokenizers

from clip_jax.data.tokenizers.base import Tokenizer, TokenizerFormat


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json file of the `tokenizers` library.

    Its own start tokens are kept, and its own end token where that is the vocabulary's largest id;
    else an end token of our own takes its place.
    """

    kind = "huggingface"

    def __init__(self, description: bytes, context_length: int):
        self.context_length = context_length
        self._description = description
        self._tokenizer = load_tokenizer_json(description)
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        start, end = special_ids(self._tokenizer)
        self.start_ids = start
        if end and end[-1] == self.vocab_size - 1:
            self.end_id = end[-1]
        else:
            self.end_id = self.vocab_size
            self.vocab_size += 1
        self._check_context()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return plain_ids(self._tokenizer, texts)

    def file(self) -> tuple[str, bytes]:
        return "tokenizer.json", self._description


class ClipaTokenizer(HuggingFaceTokenizer):
    """CLIPA's way with BERT's tokenizer.json: padding follows the text, without an end token."""

    kind = "clipa"

    def __init__(self, description: bytes, context_length: int = 32):
        super().__init__(description, context_length)
        if self.end_id == self.vocab_size - 1:
            self.vocab_size -= 1  # no end token of our own
        self.end_id = self.pad_id


def special_ids(tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the library puts before and after a text."""
    one = tokenizer.encode("a")
    first = next((i for i, special in enumerate(one.special_tokens_mask) if not special), len(one))
    after = next((i for i in range(first, len(one)) if one.special_tokens_mask[i]), len(one))
    return tuple(one.ids[:first]), tuple(one.ids[after:])


def load_tokenizer_json(description: bytes) -> tokenizers.Tokenizer:
    """A tokenizer that takes any text.

    Raises:
      ValueError: it cannot be read, or fails at words that it does not know.
    """
    try:
        tokenizer = tokenizers.Tokenizer.from_str(description.decode("utf-8-sig"))
        tokenizer.encode("a \N{SNOWMAN}")
    except BaseException as error:  # bare Exceptions, and panics of Rust, which are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"this is no tokenizer.json that can be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def plain_ids(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[Sequence[int]]:
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [one.ids for one in encoded]


FORMAT = TokenizerFormat(HuggingFaceTokenizer, "tokenizer.json")
CLIPA = TokenizerFormat(ClipaTokenizer, "tokenizer.json")

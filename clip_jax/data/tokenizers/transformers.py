"""Tokenizers of released weights, id for id as transformers' AutoTokenizer and open_clip's HFTokenizer."""

import json
from collections.abc import Sequence

from clip_jax.data.tokenizers.base import Tokenizer, TokenizerFormat
from clip_jax.data.tokenizers.clip_bpe import canonicalize, clean, mend
from clip_jax.data.tokenizers.huggingface import load_tokenizer_json, plain_ids, special_ids

# What is done to a text before its tokenizer.json sees it. transformers does nothing, or lower-cases
# for SigLIP 2; the others are open_clip's, by its names.
CLEANING = {
    "none": lambda text: text,
    "lowercase": str.lower,
    "whitespace": lambda text: " ".join(mend(text).split()),
    "lower": clean,
    "canonicalize": canonicalize,
}


class TransformersTokenizer(Tokenizer):
    """A tokenizer.json with the cleaning, the padding and the end token that its library gives it.

    Attributes:
      description: the tokenizer.json.
      clean: a key of `CLEANING`.
      zeroed_id: a token that is replaced by 0 (open_clip's strip_sep_token), or None.
    """

    kind = "transformers"

    def __init__(self, bundle: bytes, context_length: int):
        content = json.loads(bundle)
        self.context_length = context_length
        self.description: bytes = json.dumps(content["tokenizer"], ensure_ascii=False).encode()
        self.clean: str = content["clean"]
        self.zeroed_id: int | None = content["zeroed_id"]
        self.pad_id = content["pad_id"]
        self._bundle = bundle
        self._tokenizer = load_tokenizer_json(self.description)
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        self.start_ids, ends = special_ids(self._tokenizer)
        if len(ends) != 1:
            raise ValueError(
                f"tokenizer.json puts {len(ends)} special tokens after a text; one end token is needed"
            )
        self.end_id = 0 if ends[0] == self.zeroed_id else ends[0]
        self._check_context()

    @classmethod
    def of(
        cls,
        description: bytes,
        context_length: int,
        *,
        pad_id: int,
        clean: str = "none",
        zeroed_id: int | None = None,
    ) -> "TransformersTokenizer":
        """Make one from a tokenizer.json.

        Raises:
          ValueError: it cannot be read, or has no end token.
        """
        content = {"clean": clean, "pad_id": pad_id, "zeroed_id": zeroed_id}
        bundle = content | {"tokenizer": json.loads(description)}
        return cls(json.dumps(bundle, ensure_ascii=False).encode(), context_length)

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        clean = CLEANING[self.clean]
        rows = plain_ids(self._tokenizer, [clean(text) for text in texts])
        if self.zeroed_id is None:
            return rows
        return [[0 if i == self.zeroed_id else i for i in row] for row in rows]

    def file(self) -> tuple[str, bytes]:
        return "transformers.json", self._bundle

    def tokens(self) -> dict[str, int]:
        """The vocabulary, added tokens included."""
        return self._tokenizer.get_vocab()


FORMAT = TokenizerFormat(TransformersTokenizer, "transformers.json")

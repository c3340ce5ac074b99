"""SentencePiece models, given or trained on the captions."""

import io
from collections.abc import Iterable, Sequence

import sentencepiece

from clip_jax.data.tokenizers.base import Tokenizer, TokenizerFormat


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, and an end token of our own after its last piece."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, context_length: int):
        self.context_length = context_length
        self._model = model
        self._pieces = load_sentencepiece(model)
        self.end_id = self._pieces.get_piece_size()
        self.vocab_size = self.end_id + 1
        self._check_context()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return self._pieces.encode(list(texts))

    def file(self) -> tuple[str, bytes]:
        return "sentencepiece.model", self._model


def train_sentencepiece(
    captions: Iterable[str], vocab_size: int, context_length: int
) -> SentencePieceTokenizer:
    """Train a lower-casing unigram model that falls back to bytes, the same one every time.

    Args:
      captions: at least one that is not empty.
      vocab_size: ids at most, the end token included; a small corpus fills fewer.
      context_length: ids in a row.

    Raises:
      ValueError: there is no caption, or `vocab_size` has no room for bytes and characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size - 1,  # the end token comes on top
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            num_threads=4,  # a number of its own, because sums depend on it
            minloglevel=2,
        )
    except RuntimeError as error:
        if "empty" in str(error):
            raise ValueError("there is no caption to train a tokenizer on") from error
        raise ValueError(f"tokenizer.vocab_size={vocab_size} cannot be trained: {error}") from error
    return SentencePieceTokenizer(model.getvalue(), context_length)


def load_sentencepiece(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(f"this is no SentencePiece model: {error}") from error


FORMAT = TokenizerFormat(SentencePieceTokenizer, "SentencePiece model", train_sentencepiece)

"""SigLIP's tokenizers: text without capitals and punctuation, and the vocabulary's own end token."""

from collections.abc import Sequence

from clip_jax.data.tokenizers.base import Tokenizer, TokenizerFormat
from clip_jax.data.tokenizers.clip_bpe import WITHOUT_PUNCTUATION, canonicalize
from clip_jax.data.tokenizers.huggingface import load_tokenizer_json, plain_ids
from clip_jax.data.tokenizers.sentencepiece import load_sentencepiece


class SiglipTokenizer(Tokenizer):
    """SigLIP's way: no capitals, no punctuation, the vocabulary's own end token.

    Takes a SentencePiece model or the tokenizer.json that was made of it.
    """

    kind = "siglip"

    def __init__(self, model: bytes, context_length: int = 64):
        self.context_length = context_length
        self._model = model
        self._is_json = model.lstrip()[:1] == b"{"
        if self._is_json:
            self._pieces = load_tokenizer_json(model)
            self.vocab_size = 1 + max(self._pieces.get_vocab().values())
            ends = [self._pieces.token_to_id(token) for token in ("</s>", "<eos>")]
            self.end_id = next((end for end in ends if end is not None), -1)
            has_start = self._pieces.token_to_id("<bos>") is not None
        else:
            self._pieces = load_sentencepiece(model)
            self.vocab_size = self._pieces.get_piece_size()
            self.end_id = self._pieces.eos_id()
            has_start = self._pieces.bos_id() >= 0
        if self.end_id < 0:
            raise ValueError(
                "this vocabulary has no end-of-sentence piece, so it is none of SigLIP's; "
                'use tokenizer.kind="sentencepiece"'
            )
        # SigLIP 2 took Gemma's vocabulary, the only one with a start piece, and pads with 0; the
        # first SigLIP took T5's and pads with its end token.
        self.pad_id = 0 if has_start else self.end_id
        self._check_context()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        texts = [self.clean(text) for text in texts]
        return plain_ids(self._pieces, texts) if self._is_json else self._pieces.encode(texts)

    def clean(self, text: str) -> str:
        return canonicalize(text)

    def file(self) -> tuple[str, bytes]:
        return ("tokenizer.json" if self._is_json else "spiece.model"), self._model


class SiglipTransformersTokenizer(SiglipTokenizer):
    """transformers' SiglipTokenizer: it drops punctuation too, but leaves HTML entities and mojibake."""

    kind = "siglip-transformers"

    def clean(self, text: str) -> str:
        return " ".join(text.lower().translate(WITHOUT_PUNCTUATION).split())


FORMAT = TokenizerFormat(SiglipTokenizer, "SentencePiece model")
TRANSFORMERS = TokenizerFormat(SiglipTransformersTokenizer, "SentencePiece model")

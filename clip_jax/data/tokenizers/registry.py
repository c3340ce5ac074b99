"""Captions to token ids: one interface over SentencePiece, CLIP's BPE and tokenizer.json files."""

import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sentencepiece
from etils import epath

from clip_jax.config import TokenizerConfig
from clip_jax.data.tokenizers import clip_bpe
from clip_jax.data.tokenizers.base import DESCRIPTION, TextMask, Tokenizer
from clip_jax.data.tokenizers.huggingface import (
    ClipaTokenizer,
    HuggingFaceTokenizer,
    load_tokenizer_json,
    plain_ids,
)
from clip_jax.data.tokenizers.transformers import TransformersTokenizer

__all__ = [
    "KINDS",
    "ClipTokenizer",
    "ClipaTokenizer",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "SiglipTokenizer",
    "SiglipTransformersTokenizer",
    "TextMask",
    "Tokenizer",
    "TransformersTokenizer",
    "load_tokenizer",
    "make_tokenizer",
    "train_sentencepiece",
]


class ClipTokenizer(Tokenizer):
    """The lower-cased byte-pair encoding of OpenAI's models, with open_clip's text cleaning."""

    kind = "clip"
    vocab_size = 49_408
    start_ids = (49_406,)
    end_id = 49_407

    def __init__(self, context_length: int = 77):
        self.context_length = context_length
        self._check_context()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return [clip_bpe.encode(text) for text in texts]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, and an end token of our own after its last piece."""

    kind = "sentencepiece"

    def __init__(self, model: bytes, context_length: int):
        self.context_length = context_length
        self._model = model
        self._pieces = _load_sentencepiece(model)
        self.end_id = self._pieces.get_piece_size()
        self.vocab_size = self.end_id + 1
        self._check_context()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return self._pieces.encode(list(texts))

    def file(self) -> tuple[str, bytes]:
        return "sentencepiece.model", self._model


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
            self._pieces = _load_sentencepiece(model)
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
        return clip_bpe.canonicalize(text)

    def file(self) -> tuple[str, bytes]:
        return ("tokenizer.json" if self._is_json else "spiece.model"), self._model


class SiglipTransformersTokenizer(SiglipTokenizer):
    """transformers' SiglipTokenizer: it drops punctuation too, but leaves HTML entities and mojibake."""

    kind = "siglip-transformers"

    def clean(self, text: str) -> str:
        return " ".join(text.lower().translate(clip_bpe.WITHOUT_PUNCTUATION).split())


KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind
    for kind in (
        ClipTokenizer,
        SentencePieceTokenizer,
        SiglipTokenizer,
        SiglipTransformersTokenizer,
        HuggingFaceTokenizer,
        ClipaTokenizer,
        TransformersTokenizer,
    )
}


# --------------------------------------------------------------------------- making and loading


def make_tokenizer(
    cfg: TokenizerConfig,
    kind_of_model: str,
    context_length: int,
    captions: Callable[[], Iterable[str]],
) -> Tokenizer:
    """The tokenizer that a config asks for; SentencePiece is trained where no file is given.

    Args:
      cfg: the kind, and the file if there is one.
      kind_of_model: what kind "auto" means, `ModelConfig.tokenizer`.
      context_length: ids in a row.
      captions: called for the captions that a new SentencePiece model is trained on.

    Raises:
      ValueError, FileNotFoundError: the file is missing or of another kind.
    """
    kind = kind_of_model if cfg.kind == "auto" else cfg.kind
    if cfg.path is not None:
        path = epath.Path(cfg.path)
        if (path / DESCRIPTION).exists():
            return load_tokenizer(path, context_length=context_length)
        if kind == "clip":
            raise ValueError(
                f"tokenizer.path={cfg.path} would not be read, as CLIP's own tokenizer has no file: "
                "set tokenizer.kind to the file's (sentencepiece, siglip or huggingface)"
            )
        return KINDS[kind](_read(path), context_length)
    if kind == "clip":
        return ClipTokenizer(context_length)
    if kind == "sentencepiece":
        some = itertools.islice(captions(), cfg.train_captions)
        return train_sentencepiece(some, cfg.vocab_size, context_length)
    wanted = "tokenizer.json" if kind == "huggingface" else "SentencePiece model"
    raise ValueError(f'tokenizer.kind="{kind}" needs a {wanted} file: set tokenizer.path to it')


def load_tokenizer(directory: str | os.PathLike, context_length: int | None = None) -> Tokenizer:
    """Read what `Tokenizer.save` wrote, with another context length if one is given."""
    path = epath.Path(directory) / DESCRIPTION
    description: dict[str, Any] = json.loads(_read(path))
    if description.get("kind") not in KINDS:
        raise ValueError(f"{path} names no known kind of tokenizer: {description.get('kind')!r}")
    kind = KINDS[description["kind"]]
    file = [_read(path.parent / description["file"])] if description["file"] else []
    return kind(*file, context_length or description["context_length"])


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


def _load_sentencepiece(model: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(f"this is no SentencePiece model: {error}") from error


def _read(path: epath.Path) -> bytes:
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"there is no tokenizer file {path}")
    return path.read_bytes()

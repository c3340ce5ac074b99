"""The tokenizer that a run asks for: by its kind, from a file, or trained on the captions."""

import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from clip_jax import registry
from clip_jax.config import TokenizerConfig
from clip_jax.data.tokenizers import clip_bpe, huggingface, sentencepiece, siglip, transformers
from clip_jax.data.tokenizers.base import DESCRIPTION, TextMask, Tokenizer, TokenizerFormat
from clip_jax.data.tokenizers.clip_bpe import ClipTokenizer
from clip_jax.data.tokenizers.huggingface import ClipaTokenizer, HuggingFaceTokenizer
from clip_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_sentencepiece
from clip_jax.data.tokenizers.siglip import SiglipTokenizer, SiglipTransformersTokenizer
from clip_jax.data.tokenizers.transformers import TransformersTokenizer
from clip_jax.storage.json_text import parse_json

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

KINDS = {
    "clip": clip_bpe.FORMAT,
    "sentencepiece": sentencepiece.FORMAT,
    "siglip": siglip.FORMAT,
    "siglip-transformers": siglip.TRANSFORMERS,
    "huggingface": huggingface.FORMAT,
    "clipa": huggingface.CLIPA,
    "transformers": transformers.FORMAT,
}


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
    record = tokenizer_format(kind)
    if cfg.path is not None:
        path = epath.Path(cfg.path)
        if (path / DESCRIPTION).exists():
            return load_tokenizer(path, context_length=context_length)
        if record.file is None and kind in KINDS:
            raise ValueError(
                f"tokenizer.path={cfg.path} would not be read, as the {kind} tokenizer has no file: "
                "set tokenizer.kind to the file's (sentencepiece, siglip or huggingface)"
            )
        made = _of_file(path, record.tokenizer, _read(path), context_length)
    elif record.train is not None:
        some = itertools.islice(captions(), cfg.train_captions)
        made = record.train(some, cfg.vocab_size, context_length)
    elif record.file is None:
        made = record.tokenizer(context_length)
    else:
        raise ValueError(
            f'tokenizer.kind="{kind}" needs a {record.file} file: set tokenizer.path to it'
        )
    return _named(made, kind)


def tokenizer_format(kind: str) -> TokenizerFormat:
    """The record of a kind: of the table, or `package.module:NAME` from outside the tree.

    NAME is a TokenizerFormat, or a class of tokenizers made as NAME(context_length), and as
    NAME(content, context_length) where `tokenizer.path` is set.
    """
    found = registry.resolve("tokenizer.kind", kind, KINDS)
    return found if isinstance(found, TokenizerFormat) else TokenizerFormat(found)


def load_tokenizer(directory: str | os.PathLike, context_length: int | None = None) -> Tokenizer:
    """Read what `Tokenizer.save` wrote, with another context length if one is given."""
    path = epath.Path(directory) / DESCRIPTION
    try:
        description: Any = parse_json(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it") from error
    kind = description.get("kind") if isinstance(description, dict) else None
    if kind not in KINDS and not registry.is_import_path(str(kind)):
        raise ValueError(f"{path} names no known kind of tokenizer: {kind!r}")
    if missing := {"file", "context_length"} - description.keys():
        raise ValueError(f"{path} has no {' and no '.join(sorted(missing))}: restore it")
    file = [_read(path.parent / description["file"])] if description["file"] else []
    length = context_length or description["context_length"]
    made = _of_file(path.parent, tokenizer_format(kind).tokenizer, *file, length)
    return _named(made, kind)


def _named(made: Any, kind: str) -> Tokenizer:
    """A tokenizer of a kind, by which `load_tokenizer` finds it again."""
    if not isinstance(made, Tokenizer):
        raise ValueError(
            f"tokenizer.kind={kind} made a {type(made).__name__}: a tokenizer is a subclass of "
            "clip_jax.data.tokenizers.base.Tokenizer"
        )
    if kind not in KINDS:
        made.kind = kind
    return made


def _of_file(path: epath.Path, make: Callable[..., Tokenizer], *args) -> Tokenizer:
    """A tokenizer, or an error that names its file."""
    try:
        return make(*args)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(path: epath.Path) -> bytes:
    if not path.exists() or path.is_dir():
        raise FileNotFoundError(f"there is no tokenizer file {path}")
    return path.read_bytes()

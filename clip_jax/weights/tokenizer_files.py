"""The tokenizer of released weights, from the files beside them."""

import json
import logging
import re
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from clip_jax.config import ModelConfig
from clip_jax.data.tokenizers import registry
from clip_jax.data.tokenizers.registry import (
    ClipTokenizer,
    SiglipTokenizer,
    SiglipTransformersTokenizer,
    TransformersTokenizer,
    load_tokenizer,
)
from clip_jax.weights.config_values import Section, read_json

log = logging.getLogger(__name__)

SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.model")
# Tokens that are in a vocabulary and never in a text.
RESERVED = re.compile(r"extra_id|unused|reserved", re.IGNORECASE)


def find_tokenizer(
    config: ModelConfig, directory: Path, *, library: str
) -> registry.Tokenizer | None:
    """The tokenizer of released weights as their own library applies it; None: its files are not there.

    Raises:
      ValueError: its files cannot be read, or belong to other weights: an id is outside of the
        embedding table, or texts end with another token than the model reads them at.
    """
    length = config.text.context_length
    try:
        if (directory / "tokenizer" / "description.json").is_file():  # written by our own export
            found = load_tokenizer(directory / "tokenizer", context_length=length)
        elif library == "huggingface":
            found = _of_transformers(config, directory, length)
        else:
            found = _of_open_clip(config, directory, length)
    except ValueError as error:
        if str(directory) in str(error):
            raise
        raise ValueError(f"the tokenizer in {directory}: {error}") from error
    if found is None:
        log.warning("%s has no tokenizer file: the loaded tokenizer is None", directory)
        return None
    _check(found, config, directory)
    return found


def _check(tokenizer: registry.Tokenizer, config: ModelConfig, directory: Path):
    rows, end = config.text.vocab_size, config.text.end_id
    tokenizer.rows = rows
    if tokenizer.vocab_size > rows:
        tokens = tokenizer.tokens() if isinstance(tokenizer, TransformersTokenizer) else {}
        outside = [token for token, i in tokens.items() if i >= rows and not RESERVED.search(token)]
        specials = {tokenizer.end_id, tokenizer.pad_id, *tokenizer.start_ids}
        if outside or not tokens or max(specials) >= rows:
            shown = f", such as {outside[0]!r}" if outside else ""
            raise ValueError(
                f"the tokenizer in {directory} has ids up to {tokenizer.vocab_size - 1}{shown}, and the "
                f"token embedding has {rows} rows: they do not belong together"
            )
    if config.text.pool == "argmax":
        end = int(tokenizer(["a photo of a cat"]).max())  # where such a model reads a text
    if end is not None and tokenizer.end_id != end:
        raise ValueError(
            f"the tokenizer in {directory} ends a text with id {tokenizer.end_id}, and the model reads "
            f"it at id {end}: they do not belong together"
        )


def _openais(config: ModelConfig, length: int) -> ClipTokenizer | None:
    """The tokenizer without a file, for the models that have its vocabulary."""
    return ClipTokenizer(length) if config.text.vocab_size == ClipTokenizer.vocab_size else None


# ----------------------------------------------------------------------------------- open_clip


def _of_open_clip(config: ModelConfig, directory: Path, length: int) -> registry.Tokenizer | None:
    text = Section({}, "")
    if (directory / "open_clip_config.json").is_file():
        whole = read_json(directory / "open_clip_config.json")
        text = (whole.section("model_cfg") if "model_cfg" in whole else whole).section("text_cfg")
    options = text.section("tokenizer_kwargs")
    if config.tokenizer == "clip":
        options.choice("clean", "lower", {"lower": None})
        options.refuse_others({"reduction_mask": ""})
        return _openais(config, length)
    # What open_clip's configs say where no file does.
    is_siglip = config.tokenizer == "siglip"
    is_clipa = not is_siglip and config.text.pool == "last"
    cleaning = {name: name for name in ("canonicalize", "lower", "whitespace")}
    clean = options.choice("clean", "canonicalize" if is_siglip else "whitespace", cleaning)
    strips = options.flag("strip_sep_token", is_clipa and "tokenizer_kwargs" not in text)
    options.refuse_others({})
    description = _tokenizer_json(directory)
    if description is None:
        model = _sentencepiece(directory) if is_siglip else None
        if model is not None and clean != "canonicalize":
            raise options.error("clean", "canonicalize, beside a SentencePiece model,")
        return None if model is None else SiglipTokenizer(model, length)
    content = json.loads(description)
    zeroed = _id(content, _token(directory, "sep_token") or "[SEP]") if strips else None
    return TransformersTokenizer.of(
        description,
        length,
        pad_id=_pad_id(content, directory, Section({}, "")),
        clean=clean,
        zeroed_id=zeroed,
    )


# -------------------------------------------------------------------------------- transformers


def _of_transformers(
    config: ModelConfig, directory: Path, length: int
) -> registry.Tokenizer | None:
    text = read_json(directory / "config.json").section("text_config")
    description = _tokenizer_json(directory) or _from_vocabulary(directory)
    if description is not None:
        content = json.loads(description)
        settings = _settings(directory)
        name = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
        clean = "lowercase" if name == "Siglip2Tokenizer" else "none"
        return TransformersTokenizer.of(
            description, length, pad_id=_pad_id(content, directory, text), clean=clean
        )
    model = _sentencepiece(directory)
    if config.tokenizer == "siglip" and model is not None:
        return SiglipTransformersTokenizer(model, length)
    if config.tokenizer != "clip":
        return None
    log.warning("%s has no tokenizer file: took OpenAI's vocabulary for its own", directory)
    return _openais(config, length)


def _from_vocabulary(directory: Path) -> bytes | None:
    """vocab.json and merges.txt as the tokenizer.json that CLIPTokenizer makes of them."""
    found = [name for name in ("vocab.json", "merges.txt") if (directory / name).is_file()]
    if not found:
        return None
    if len(found) == 1:
        raise ValueError(
            f"{directory} has {found[0]} alone: vocab.json and merges.txt are one tokenizer"
        )
    ids = read_json(directory / "vocab.json").content
    lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    start = _token(directory, "bos_token") or "<|startoftext|>"
    end = _token(directory, "eos_token") or "<|endoftext|>"
    unknown = _token(directory, "unk_token") or end
    if start not in ids or end not in ids:
        raise ValueError(f"{directory / 'vocab.json'} has no {start if start not in ids else end}")
    try:
        made = Tokenizer(
            models.BPE(ids, merges, end_of_word_suffix="</w>", unk_token=unknown, fuse_unk=False)
        )
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{directory}: vocab.json and merges.txt do not fit: {error}") from error
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    specials = "|".join(re.escape(token) for token in (start, end))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{specials}|{words}"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.post_processor = processors.RobertaProcessing(
        (end, ids[end]), (start, ids[start]), trim_offsets=False, add_prefix_space=False
    )
    made.add_special_tokens(sorted({start, end, unknown}))
    return made.to_str().encode()


# --------------------------------------------------------------------------------------- files


def _tokenizer_json(directory: Path) -> bytes | None:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    if not isinstance(read_json(path).get("model"), dict):
        raise ValueError(f"{path} has no model: it is no tokenizer.json of the tokenizers library")
    return path.read_bytes()


def _sentencepiece(directory: Path) -> bytes | None:
    paths = [directory / name for name in SENTENCEPIECE if (directory / name).is_file()]
    return paths[0].read_bytes() if paths else None


def _settings(directory: Path, name: str = "tokenizer_config.json") -> Section:
    path = directory / name
    return read_json(path) if path.is_file() else Section({}, str(path))


def _token(directory: Path, key: str) -> str | None:
    """A special token by its role."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = _settings(directory, name)
        found = settings.get(key)
        if isinstance(found, dict):
            found = found.get("content")
        if isinstance(found, str):
            return found
        if key in settings:
            raise settings.error(key, "a token")
    return None


def _id(content: dict, token: str) -> int | None:
    try:
        added = {one["content"]: one["id"] for one in content.get("added_tokens", [])}
        vocabulary = content["model"].get("vocab", {})
        if isinstance(vocabulary, list):  # unigram: pieces with their scores
            vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
        return added.get(token, vocabulary.get(token))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"this is no tokenizer.json that can be read: {error!r:.80}") from error


def _pad_id(content: dict, directory: Path, text: Section) -> int:
    """What fills a row: the tokenizer's own pad token, else the config's, else the usual names."""
    named = _token(directory, "pad_token")
    if named is not None:
        found = _id(content, named)
        if found is None:
            raise ValueError(
                f"{directory}: pad_token is {named!r}, which tokenizer.json does not have"
            )
        return found
    padding = content.get("padding")
    if isinstance(padding, dict) and isinstance(padding.get("pad_id"), int):
        return padding["pad_id"]
    if isinstance(text.get("pad_token_id"), int):
        return text.get("pad_token_id")
    for token in ("<pad>", "[PAD]", "</s>", "<|endoftext|>"):
        if (found := _id(content, token)) is not None:
            return found
    return 0

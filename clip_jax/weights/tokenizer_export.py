"""A tokenizer's files for other libraries, so that they give the same ids."""

import json
from typing import Any

import sentencepiece
from absl import logging

from clip_jax.data.tokenizers.clip_bpe import vocabulary
from clip_jax.data.tokenizers.registry import Tokenizer, TransformersTokenizer

Files = dict[str, Any]  # content by name: bytes, or what JSON can hold

# Cleaning that a tokenizer.json can hold. Mending mojibake and HTML entities is not among it.
SPACES = [
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Strip", "strip_left": True, "strip_right": True},
]
LOWERCASE = [{"type": "Lowercase"}]
PUNCTUATION = [
    {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": r"[!-/:-@\[-`{-~]"}, "content": ""},
]
NORMALIZERS = {
    "none": [],
    "lowercase": LOWERCASE,
    "whitespace": SPACES,
    "lower": SPACES + LOWERCASE,
    "canonicalize": PUNCTUATION + LOWERCASE + SPACES,
}


def transformers_files(tokenizer: Tokenizer) -> Files:
    """What `AutoTokenizer.from_pretrained` reads."""
    if tokenizer.kind == "clip":
        return _clip_files(tokenizer.context_length)
    name, data = tokenizer.file()
    if name == "spiece.model":
        return {name: data, "tokenizer_config.json": _spiece_settings(tokenizer, data)}
    if tokenizer.kind == "siglip":
        return _json_files(tokenizer, json.loads(data), clean="canonicalize")
    if isinstance(tokenizer, TransformersTokenizer):
        return _json_files(tokenizer, json.loads(tokenizer.description), clean=tokenizer.clean)
    # Without files of its own a CLIPTokenizer would be made there, which knows no word.
    logging.warning(
        "transformers has no tokenizer of the kind %s: the export refuses AutoTokenizer; give the model the ids "
        "of clip_jax.load(...).tokenizer, which is kept in tokenizer/", tokenizer.kind,
    )  # fmt: skip
    return {"tokenizer_config.json": {"tokenizer_class": f"clip_jax_{tokenizer.kind}_Tokenizer"}}


def open_clip_files(tokenizer: Tokenizer) -> tuple[Files, dict]:
    """What open_clip's HFTokenizer reads, and its tokenizer_kwargs."""
    name, data = tokenizer.file()
    if name == "spiece.model":
        return {name: data, "tokenizer_config.json": _spiece_settings(tokenizer, data)}, CANONICAL
    if tokenizer.kind == "siglip":
        return _json_files(tokenizer, json.loads(data), clean="none"), CANONICAL
    if not isinstance(tokenizer, TransformersTokenizer):
        return {name: data}, {}
    own = tokenizer.clean in ("none", "lowercase")  # open_clip has no name for these
    files = _json_files(
        tokenizer, json.loads(tokenizer.description), clean=tokenizer.clean if own else "none"
    )
    options = {} if own else {"clean": tokenizer.clean}
    return files, options | ({"strip_sep_token": True} if tokenizer.zeroed_id is not None else {})


CANONICAL = {"clean": "canonicalize"}


def _spiece_settings(tokenizer: Tokenizer, model: bytes) -> dict:
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": tokenizer.context_length,
        "do_lower_case": True,
        "eos_token": pieces.id_to_piece(tokenizer.end_id),
        "pad_token": pieces.id_to_piece(tokenizer.pad_id),
        "unk_token": pieces.id_to_piece(pieces.unk_id()),
    }


def _json_files(tokenizer: Tokenizer, content: dict, *, clean: str) -> Files:
    """A tokenizer.json that cleans texts and ends them as the tokenizer does."""
    names = _names(content)
    end, pad = names[tokenizer.end_id], names[tokenizer.pad_id]
    if before := NORMALIZERS[clean]:
        own = [content["normalizer"]] if content.get("normalizer") else []
        content["normalizer"] = {"type": "Sequence", "normalizers": [*before, *own]}
    if not isinstance(tokenizer, TransformersTokenizer):  # its end token is our own addition
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, _special(end)],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {end: {"id": end, "ids": [tokenizer.end_id], "tokens": [end]}},
        }
    known = {one["content"] for one in content.get("added_tokens", [])}
    missing = [(i, names[i]) for i in sorted({tokenizer.end_id, tokenizer.pad_id})]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        *content.get("added_tokens", []),
        *(
            {"id": i, "content": token, **flags, "special": True}
            for i, token in missing
            if token not in known
        ),
    ]
    specials = {"eos_token": end, "pad_token": pad}
    if len(tokenizer.start_ids) == 1:
        specials["bos_token"] = names[tokenizer.start_ids[0]]
    for key, usual in (("unk_token", ("<unk>", "[UNK]")), ("sep_token", ("[SEP]",))):
        found = [token for token in usual if token in names.values()]
        specials |= {key: found[0]} if found else {}
    return {
        "tokenizer.json": content,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": tokenizer.context_length,
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **specials,
        },
    }


def _special(token: str) -> dict:
    return {"SpecialToken": {"id": token, "type_id": 0}}


def _names(content: dict) -> dict[int, str]:
    """Tokens by their ids."""
    found = content["model"].get("vocab", {})
    pairs = found.items() if isinstance(found, dict) else ((p, i) for i, (p, _) in enumerate(found))
    names = {i: token for token, i in pairs}
    return names | {one["id"]: one["content"] for one in content.get("added_tokens", [])}


def _clip_files(context_length: int) -> Files:
    """The files of transformers' CLIPTokenizer; it calls the two special tokens otherwise."""
    ids, ranks = vocabulary()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    start, end = names.values()
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in ranks)])
    specials = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    return {
        "vocab.json": {names.get(piece, piece): i for piece, i in ids.items()},
        "merges.txt": (merges + "\n").encode(),
        "special_tokens_map.json": specials,
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": context_length,
            "do_lower_case": True,
            "errors": "replace",
            **specials,
        },
    }

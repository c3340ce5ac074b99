"""Writes a model as Hugging Face's or open_clip's files, so that other tools read it."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save_file

from clip_jax.config import ModelConfig
from clip_jax.data.tokenizers.clip_bpe import vocabulary
from clip_jax.data.tokenizers.registry import Tokenizer
from clip_jax.weights import huggingface, huggingface_config, open_clip, open_clip_config
from clip_jax.weights.huggingface_preprocess import write_preprocess
from clip_jax.weights.mapping import export_tensors
from clip_jax.weights.openai import batch_counters

Library = Literal["huggingface", "open_clip"]
Files = dict[str, Any]  # content by name: bytes, or what JSON can hold


def export(
    directory: str | Path,
    config: ModelConfig,
    variables: Mapping,
    *,
    to: Library = "huggingface",
    tokenizer: Tokenizer | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
):
    """Write a model for another library.

    Args:
      directory: a new or empty directory. It appears whole or not at all.
      config: the architecture.
      variables: what `model.init` or `load` gave.
      to: "huggingface", for `CLIPModel.from_pretrained` or `SiglipModel.from_pretrained`, or
        "open_clip", for `open_clip.create_model("local-dir:...")`.
      tokenizer: written beside the weights; in the library's own form where it has one.
      dtype: of the weights. Exported as they were imported, they are the same bits.

    Raises:
      ValueError: the library has no such model, or the directory holds something already.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is not empty: export into a new directory")
    files = FILES[to](config, tokenizer)  # refuses what the library has not, before any work
    links = {"huggingface": huggingface.links, "open_clip": open_clip.links}[to](config)
    tensors = export_tensors(variables, links, dtype)
    if to == "open_clip":
        tensors |= {name: np.zeros((), np.int64) for name in batch_counters(links)}
    weights = {"huggingface": "model.safetensors", "open_clip": "open_clip_model.safetensors"}[to]
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else _json(content)
            (partial / name).write_bytes(data)
        if tokenizer is not None and tokenizer.kind != "clip":
            tokenizer.save(partial / "tokenizer")  # as `load` reads it
        save_file(tensors, partial / weights, metadata={"format": "pt"})
        if directory.exists():
            directory.rmdir()
        os.replace(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open_clip_files(config: ModelConfig, tokenizer: Tokenizer | None) -> Files:
    content = open_clip_config.write_config(config)
    files: Files = {"open_clip_config.json": content}
    if tokenizer is not None and tokenizer.kind != "clip":
        name, data = tokenizer.file()
        files[name] = data
        # open_clip then looks for the tokenizer's files beside its own.
        content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."
        if tokenizer.kind == "siglip":
            content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return files


def _huggingface_files(config: ModelConfig, tokenizer: Tokenizer | None) -> Files:
    end_id = None if tokenizer is None else tokenizer.end_id
    files: Files = {
        "config.json": huggingface_config.write_config(config, end_id=end_id),
        "preprocessor_config.json": write_preprocess(config),
    }
    if tokenizer is None:
        return files
    if tokenizer.kind == "clip":
        return files | _clip_tokenizer_files(tokenizer.context_length)
    name, data = tokenizer.file()
    files[name] = data
    if tokenizer.kind == "siglip":
        files["tokenizer_config.json"] = {
            "tokenizer_class": "SiglipTokenizer",
            "model_max_length": tokenizer.context_length,
            "do_lower_case": True,
            "eos_token": "</s>",
            "pad_token": "</s>",
            "unk_token": "<unk>",
        }
    return files


def _clip_tokenizer_files(context_length: int) -> Files:
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


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


FILES = {"huggingface": _huggingface_files, "open_clip": _open_clip_files}

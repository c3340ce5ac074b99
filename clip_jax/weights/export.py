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
from clip_jax.data.tokenizers.registry import Tokenizer
from clip_jax.weights import huggingface, huggingface_config, open_clip, open_clip_config
from clip_jax.weights.huggingface_preprocess import write_preprocess
from clip_jax.weights.mapping import export_tensors
from clip_jax.weights.openai import batch_counters
from clip_jax.weights.tokenizer_export import Files, open_clip_files, transformers_files

Library = Literal["huggingface", "open_clip"]


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
      directory: a new or empty directory, or a link to one. It appears whole or not at all.
      config: the architecture.
      variables: what `model.init` or `load` gave.
      to: "huggingface", for `CLIPModel.from_pretrained` or `SiglipModel.from_pretrained`, or
        "open_clip", for `open_clip.create_model("local-dir:...")`.
      tokenizer: written beside the weights; in the library's own form where it has one.
      dtype: of the weights. With the type of the import, the export is bit-identical to it.

    Raises:
      ValueError: the library has no such model, or the directory holds something already.
    """
    directory = Path(directory).expanduser().resolve()  # a link, or ".", cannot be replaced itself
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file: export into a new directory")
    if directory.exists() and any(directory.iterdir()):
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
        more, options = open_clip_files(tokenizer)
        files |= more
        # open_clip then looks for the tokenizer's files beside its own.
        content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "."
        if options:
            content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = options
    return files


def _huggingface_files(config: ModelConfig, tokenizer: Tokenizer | None) -> Files:
    ids = {} if tokenizer is None else {"end_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
    files: Files = {
        "config.json": huggingface_config.write_config(config, **ids),
        "preprocessor_config.json": write_preprocess(config),
    }
    return files if tokenizer is None else files | transformers_files(tokenizer)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


FILES = {"huggingface": _huggingface_files, "open_clip": _open_clip_files}

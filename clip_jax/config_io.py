"""Settings from a Python file with `get_config()`, or from the run directory that they made."""

import dataclasses
import os
import runpy
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from clip_jax.config import TrainConfig
from clip_jax.runs.directory import RunDirectory


def read_config(path: str | os.PathLike) -> TrainConfig:
    """The settings that a config file's `get_config()` returns, or those of an earlier run.

    Args:
      path: a Python file, whose code is run, or a run directory or its URL, whose settings are only
        read.

    Raises:
      FileNotFoundError: there is no such file or run.
      ValueError: the file has no `get_config`, or it returns something else, or a setting in it
        is of another type.
    """
    file = Path(path := os.fspath(path))
    if "://" in path or file.is_dir():
        config = RunDirectory(path, main=False).load_config()
        if config is None:
            raise FileNotFoundError(f"{path} is no run directory: it has no config.json")
        return config
    if not file.is_file():
        near = sorted(Path("configs").glob("*.py"))
        hint = f"; there are {', '.join(map(str, near))}" if near else ""
        raise FileNotFoundError(f"there is no config file {path}{hint}")
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # a config may import the one that it starts from
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise ValueError(f"{path} defines no function get_config()")
        config = get_config()
    finally:
        sys.path.remove(folder)
    if not isinstance(config, TrainConfig):
        raise ValueError(
            f"get_config() of {path} returns {type(config).__name__}; it must return a TrainConfig"
        )
    if wrong := list(_wrong_settings(config)):
        raise ValueError(f"{path} sets {'; '.join(wrong)}")
    return config


def _wrong_settings(config: Any, prefix: str = "") -> Iterator[str]:
    """Python lets a dataclass hold anything; a flag of the command is checked by `tyro`."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(value, kind):
            yield from _wrong_settings(value, f"{prefix}{field.name}.")
        elif not _fits(value, kind):
            yield f"{prefix}{field.name}={value!r}, which must be {_in_words(kind)}"


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in parts
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def take_config(args: list[str]) -> tuple[TrainConfig, list[str]]:
    """The settings that --config names, and the arguments without it."""
    rest, path = [], None
    waiting = iter(args)
    for arg in waiting:
        name, equals, value = arg.partition("=")
        if name != "--config":
            rest.append(arg)
            continue
        path = value if equals else next(waiting, None)
        if path is None:
            raise ValueError("--config needs a file or a run directory")
    return (TrainConfig() if path is None else read_config(path)), rest

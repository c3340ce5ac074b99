"""Command-line arguments as settings: --config, flags, old names, and one line for a bad value."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from clip_jax.config import TrainConfig
from clip_jax.config_io import RENAMED, RENAMED_VALUES, read_config
from clip_jax.registry import InvalidSetting
from clip_jax.runs.directory import RunDirectory

T = TypeVar("T")


def parse(kind: type[T], args: list[str], *, default: Any, prog: str, description: str) -> T:
    """The settings that the arguments give; the others are those of `default`.

    Raises:
      ValueError: a value cannot be meant, or a setting or a value has another name now.
    """
    refuse_renamed(args)
    known = {"args": args, "default": default, "prog": prog, "description": description}
    return raise_refusals(lambda: tyro.cli(kind, **known))


def raise_refusals(cli: Callable[[], T]) -> T:
    """What `cli` makes of arguments. A setting that is refused is raised; else tyro shows what is wrong.

    Raises:
      InvalidSetting: of the setting, which tyro would show in a frame with names of its own.
    """
    unseen = io.StringIO()
    try:
        with contextlib.redirect_stdout(unseen), contextlib.redirect_stderr(unseen):
            return cli()
    except SystemExit as left:
        error: BaseException | None = left
        while (error := error.__context__) is not None:
            if isinstance(error, InvalidSetting):
                raise error from None
    return cli()  # again, for its help or its message


def refuse_renamed(args: list[str]):
    """Refuse the old names of settings and of their values, with those of now."""
    for arg, following in zip(args, [*args[1:], ""]):
        if not arg.startswith("--"):
            continue
        flag, equals, value = arg[2:].partition("=")
        group, dot, last = flag.replace("-", "_").rpartition(".")
        name = f"{group}{dot}{last.removeprefix('no_')}"
        value = value if equals else following
        if name in RENAMED:
            new = RENAMED[name].replace("_", "-")
            raise ValueError(f"--{flag} is named --{new} now: clip-jax train --help describes it")
        if value in RENAMED_VALUES.get(name, {}):
            new = RENAMED_VALUES[name][value]
            raise ValueError(f"--{flag} {value} is named --{flag} {new} now")


def take_config(args: list[str]) -> tuple[TrainConfig, list[str]]:
    """The settings that --config names, and the arguments without it."""
    others, path = [], None
    waiting = iter(args)
    for arg in waiting:
        name, equals, value = arg.partition("=")
        if name != "--config":
            others.append(arg)
            continue
        path = value if equals else next(waiting, None)
        if not path:
            raise ValueError("--config needs a file or a run directory")
    if path is None:
        return TrainConfig(), others
    if "://" not in path and not Path(path).is_dir():
        return read_config(path), others
    return run_config(path), others


def run_config(path: str) -> TrainConfig:
    """The settings of an earlier run, which is only read."""
    config = RunDirectory(path, main=False).load_config()
    if config is None:
        raise FileNotFoundError(f"{path} is no run directory: it has no config.json")
    return config

"""Settings from Python files and JSON, old names of them, and what differs between two."""

import dataclasses
import difflib
import importlib.metadata
import json
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import dacite

from clip_jax import config as settings
from clip_jax.config import ModelConfig, TrainConfig
from clip_jax.models.tower import TOWERS, ImageTower, TextTower, Tower, kind_of, name_of
from clip_jax.redaction import redact
from clip_jax.registry import InvalidSetting, Settings, hints

T = TypeVar("T")

# Settings and values that have another name now: saved runs are translated, arguments are refused.
RENAMED = {
    "loss.movement": "loss.distributed",
    "evaluation.zero_shot": "evaluation.metrics",
    "evaluation.retrieval": "evaluation.metrics",
    "logging.tensorboard": "logging.loggers",
}
RENAMED_VALUES = {"loss.distributed": {"dense": "replicated"}}

# Settings of one start of a run, which are not kept with it.
ONE_START = ("workdir", "distributed", "checkpoint.allow_change")

# Settings that a run may change when it resumes: they leave the training's numbers alone, or
# change them by rounding only (mesh, remat, tiles). Everything else has to be allowed by name.
FREE = (
    "model.remat",
    "model.unroll",
    "model.attention",
    "loss.distributed",
    "loss.tile",
    "optimizer.shard_over_data",
    "data.eval_source",
    "data.eval_subset",
    "data.eval_also",
    "data.data_dir",
    "data.read_ahead_mb",
    "data.cache_mb",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.max_bad_share",
    "mesh",
    "checkpoint",
    "evaluation",
    "logging",
    "health.max_skipped_in_row",
    "health.hang_seconds",
)

# ---------------------------------------------------------------------------- Python files


def read_config(path: str | os.PathLike) -> TrainConfig:
    """The settings that a config file's `get_config()` returns. Its code is run.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file fails, has no `get_config`, or it returns something else.
    """
    file = Path(path := os.fspath(path))
    if not file.is_file():
        near = sorted(Path("configs").glob("*.py"))
        hint = f"; there are {', '.join(map(str, near))}" if near else ""
        raise FileNotFoundError(f"there is no config file {path}{hint}")
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # a config may import the one that it starts from
    try:
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise ValueError("it defines no function get_config()")
        config = get_config()
        if not isinstance(config, TrainConfig):
            kind = type(config).__name__
            raise ValueError(f"get_config() returns {kind}; it must return a TrainConfig")
    except Exception as error:
        known = type(error) is ValueError or isinstance(error, InvalidSetting)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}{_line(error, file)}: {text}{_hint(str(error))}") from error
    finally:
        sys.path.remove(folder)
    return config


def _line(error: BaseException, file: Path) -> str:
    """The last line of the config file that an error passed through."""
    found, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            found = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _hint(text: str) -> str:
    """What a setting or a value that there is not is named now, or the nearest one."""
    for name, values in RENAMED_VALUES.items():
        for old, new in values.items():
            if f"{name}={old!r} " in text:
                return f"; {old!r} is named {new!r} now"
    unknown = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    kind = unknown and getattr(settings, unknown[1], None)
    if not kind or not issubclass(kind, Settings):
        return ""
    name = kind.group + unknown[2]
    if name in RENAMED:
        return f"; {name} is named {RENAMED[name]} now"
    names = [field.name for field in dataclasses.fields(kind)]
    near = difflib.get_close_matches(unknown[2], names, n=1)
    return f"; the nearest is {near[0]}" if near else ""


# ------------------------------------------------------------------------------------ JSON


def to_json(cfg: Any) -> dict:
    """A settings dataclass as JSON's types, without secrets. A model's towers have their names."""
    content = dataclasses.asdict(cfg)
    if isinstance(cfg, ModelConfig):
        for side in ("vision", "text"):
            content[side] = {"tower": name_of(getattr(cfg, side)), **content[side]}
    return redact(json.loads(json.dumps(content)))


def run_settings(cfg: TrainConfig) -> dict:
    """What is kept with a run: its settings as JSON, without those of one start."""
    return without(to_json(cfg), ONE_START)


def from_json(kind: type[T], data: dict, *, origin: str) -> T:
    """The settings dataclass that `to_json` described. Settings that it lacks have their defaults.

    Args:
      kind: `TrainConfig` or `ModelConfig`.
      data: the JSON, perhaps with old names.
      origin: the file that it came from, for the message.

    Raises:
      ValueError: when there is a setting that this version does not know, or a value of another
        type.
    """
    try:
        if kind is TrainConfig:
            data = without(translate(data), ONE_START)
        return _from_dict(kind, data)
    except dacite.UnexpectedDataError as error:
        names = ", ".join(sorted(error.keys))
        raise ValueError(
            f"{origin} has settings that this version of clip_jax "
            f"({importlib.metadata.version('clip_jax')}) does not know: {names}. Use the version "
            "that wrote it, or remove them from the file."
        ) from error
    except (dacite.DaciteError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{origin} does not hold a {kind.__name__}: {error}") from error


def _from_dict(kind: type[T], data: dict) -> T:
    towers = {ImageTower: _tower, TextTower: _tower}
    return dacite.from_dict(kind, data, dacite.Config(strict=True, cast=[tuple], type_hooks=towers))


def _tower(data: dict) -> Tower:
    """A tower's config. Older files do not name it: it is the one that has most of the settings."""
    data = dict(data)
    name = data.pop("tower", None)
    kinds = map(kind_of, TOWERS if name is None else (name,))
    return _from_dict(max(kinds, key=lambda kind: len(data.keys() & hints(kind).keys())), data)


def translate(data: dict) -> dict:
    """Saved settings under the names of now."""
    flat = flatten(data)
    measured = [flat.pop(f"evaluation.{name}", None) for name in ("zero_shot", "retrieval")]
    if measured != [None, None]:
        zero_shot, retrieval = (value is not False for value in measured)
        metrics = ["zero_shot"] * zero_shot + ["loss", "retrieval"] * retrieval
        flat["evaluation.metrics"] = metrics
    if (tensorboard := flat.pop("logging.tensorboard", None)) is not None:
        flat["logging.loggers"] = ["jsonl"] + ["tensorboard"] * bool(tensorboard)
    for old, new in RENAMED.items():
        if old in flat:
            flat[new] = flat.pop(old)
    for name, values in RENAMED_VALUES.items():
        if name in flat:
            flat[name] = values.get(flat[name], flat[name])
    return _unflatten(flat)


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """A tree as one dictionary: {"loss": {"kind": ...}} as {"loss.kind": ...}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def without(tree: dict, names: tuple[str, ...]) -> dict:
    """A tree without some of its entries or groups, by their dotted names."""
    return _unflatten({k: v for k, v in flatten(tree).items() if not covers(names, k)})


def _unflatten(flat: dict[str, Any]) -> dict:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return tree


def covers(names: tuple[str, ...], name: str) -> bool:
    """Whether a setting is among the names, by its own or its group's."""
    return any(name == other or name.startswith(other + ".") for other in names)


# ----------------------------------------------------------------------------- differences


class Change(NamedTuple):
    """A setting that is another now, as a dotted name, and both values."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.old)} -> {_short(self.new)}"


def check_resume(old: dict, new: dict, allow: tuple[str, ...] = ()) -> list[Change]:
    """What changed between a run's settings and those that it is to resume with.

    Args:
      old: the run's settings as JSON; more entries than a config's may stand beside them, such as
        {"data": {"fingerprint": ...}}.
      new: the settings of now, likewise.
      allow: dotted names (also of a whole group) that may differ though they change the training.

    Raises:
      ValueError: when a setting differs that is neither free to change nor allowed.
    """
    old_flat, new_flat = (flatten(without(redact(each), ONE_START)) for each in (old, new))
    names = sorted(old_flat.keys() | new_flat.keys())
    known = {*names, *(name.rpartition(".")[0] for name in names)}
    if unknown := [name for name in allow if name not in known]:
        raise ValueError(f"checkpoint.allow_change names no setting: {', '.join(unknown)}")
    changes = list(differences(old_flat, new_flat))
    refused = [c for c in changes if not (covers(FREE, c.name) or covers(allow, c.name))]
    if refused:
        raise ValueError(
            "The run was trained with other settings: "
            + "; ".join(map(str, refused))
            + ". Give the old values, choose another --workdir, or allow the new ones by "
            "--checkpoint.allow-change " + " ".join(change.name for change in refused)
        )
    return changes


def differences(old: dict, new: dict) -> Iterator[Change]:
    """What differs between two trees, for a person."""
    old_flat, new_flat = flatten(old), flatten(new)
    for name in sorted(old_flat.keys() | new_flat.keys()):
        if old_flat.get(name) != new_flat.get(name):
            yield Change(name, old_flat.get(name), new_flat.get(name))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."

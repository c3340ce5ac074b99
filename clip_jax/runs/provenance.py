"""What a run was made with: settings as JSON, what changed since, versions, and no secrets."""

import dataclasses
import importlib.metadata
import json
import platform
from typing import Any, NamedTuple, TypeVar

import dacite
import jax

from clip_jax.config import ModelConfig
from clip_jax.models.tower import ImageTower, TextTower, Tower
from clip_jax.models.towers import TOWERS, kind_of, name_of
from clip_jax.redaction import redact

T = TypeVar("T")

LIBRARIES = ("clip_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# Settings that a run may change when it goes on: they leave the training's numbers alone, or
# change them by rounding only (mesh, remat, tiles). Everything else has to be allowed by name.
FREE = (
    "workdir",
    "model.remat",
    "model.unroll",
    "model.attention",
    "loss.distributed",
    "loss.tile",
    "data.eval_source",
    "data.eval_also",
    "data.data_dir",
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
    "distributed",
)


class Change(NamedTuple):
    """A setting that is another now, as a dotted name, and both values."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.old)} -> {_short(self.new)}"


def to_json(cfg: Any) -> dict:
    """A settings dataclass as JSON's types, without secrets. A model's towers have their names."""
    content = dataclasses.asdict(cfg)
    if isinstance(cfg, ModelConfig):
        for side in ("vision", "text"):
            content[side] = {"tower": name_of(getattr(cfg, side)), **content[side]}
    return redact(json.loads(json.dumps(content)))


def from_json(kind: type[T], data: dict, *, origin: str) -> T:
    """The settings dataclass that `to_json` described. Settings that it lacks have their defaults.

    Args:
      kind: `TrainConfig` or `ModelConfig`.
      data: the JSON.
      origin: the file that it came from, for the message.

    Raises:
      ValueError: when there is a setting that this version does not know, or a value of another
        type.
    """
    try:
        towers = {ImageTower: _tower, TextTower: _tower}
        return dacite.from_dict(
            kind, data, dacite.Config(strict=True, cast=[tuple], type_hooks=towers)
        )
    except dacite.UnexpectedDataError as error:
        names = ", ".join(sorted(error.keys))
        raise ValueError(
            f"{origin} has settings that this version of clip_jax "
            f"({importlib.metadata.version('clip_jax')}) does not know: {names}. Use the version "
            "that wrote it, or remove them from the file."
        ) from error
    except (dacite.DaciteError, ValueError, TypeError) as error:
        raise ValueError(f"{origin} does not hold a {kind.__name__}: {error}") from error


def _tower(data: dict) -> Tower:
    """A tower's config; before 2026-12 files did not name it, and there were ours alone."""
    name = data.get("tower")
    settings = {key: value for key, value in data.items() if key != "tower"}
    if name is None:
        shared = {
            kind: len(settings.keys() & {field.name for field in dataclasses.fields(kind)})
            for kind in TOWERS.values()
        }
        kind = max(shared, key=shared.__getitem__)
    else:
        kind = kind_of(name)
    return dacite.from_dict(kind, settings, dacite.Config(strict=True, cast=[tuple]))


def check_resume(old: dict, new: dict, allow: tuple[str, ...] = ()) -> list[Change]:
    """What changed between a run's settings and those that it is to go on with.

    Args:
      old: the run's settings as JSON; more entries than a config's may stand beside them, such as
        {"data": {"fingerprint": ...}}.
      new: the settings of now, likewise.
      allow: dotted names (also of a whole group) that may differ though they change the training.

    Raises:
      ValueError: when a setting differs that is neither free to change nor allowed.
    """
    old_flat, new_flat = flatten(redact(old)), flatten(redact(new))
    names = sorted(old_flat.keys() | new_flat.keys())
    known = {*names, *(name.rpartition(".")[0] for name in names)}
    if unknown := [name for name in allow if name not in known]:
        raise ValueError(f"checkpoint.allow_change names no setting: {', '.join(unknown)}")
    changes = [
        Change(name, old_flat.get(name), new_flat.get(name))
        for name in names
        if old_flat.get(name) != new_flat.get(name)
    ]
    refused = [c for c in changes if not (_covers(FREE, c.name) or _covers(allow, c.name))]
    if refused:
        raise ValueError(
            "The run was trained with other settings: "
            + "; ".join(map(str, refused))
            + ". Give the old values, choose another --workdir, or go on with the new ones by "
            "--checkpoint.allow-change " + " ".join(change.name for change in refused)
        )
    return changes


def environment() -> dict:
    """The versions and the devices that a checkpoint is made with."""
    devices = jax.devices()
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "versions": versions | {"python": platform.python_version()},
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
    }


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _covers(names: tuple[str, ...], name: str) -> bool:
    return any(name == other or name.startswith(other + ".") for other in names)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."

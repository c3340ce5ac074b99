"""What a setting may be: a choice by its name, a number within its bounds, a text, or several."""

import difflib
import functools
import importlib
import math
import types
from collections.abc import Mapping

from typing import (  # isort: skip
    Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints,
)  # fmt: skip

Record = TypeVar("Record")

# --------------------------------------------------------------------------------- choices


def is_import_path(name: str) -> bool:
    """Whether a name is written `package.module:NAME`, which needs no line in any table."""
    module, colon, attribute = name.partition(":")
    parts = module.split(".")
    return bool(colon and attribute) and all(part.isidentifier() for part in parts)


def resolve(setting: str, name: str, table: Mapping[str, Record]) -> Record:
    """The record that a setting names.

    Args:
      setting: the setting's name, for messages, such as "loss.kind".
      name: a key of the table, or `package.module:NAME`.
      table: the records of the tree.

    Raises:
      ValueError: the table has no such name (the nearest is given), or the module cannot be
        imported, or has no such attribute.
    """
    if name in table:
        return table[name]
    if is_import_path(name):
        return _import(setting, name)
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.4)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise ValueError(
        f"{setting}={name!r} is not one of {', '.join(sorted(table))}{hint}. A choice from "
        "outside is written package.module:NAME"
    )


def _import(setting: str, name: str):
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{setting}={name!r}: the module {module} cannot be imported ({error}); install it "
            "or add its folder to PYTHONPATH"
        ) from error
    if not hasattr(found, attribute):
        near = difflib.get_close_matches(attribute, dir(found), n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ValueError(f"{setting}={name!r}: {module} has no attribute {attribute!r}{hint}")
    return getattr(found, attribute)


# ---------------------------------------------------------------------------------- bounds


class InvalidSetting(ValueError):
    """A setting whose value cannot be meant; the message names it and says what is allowed."""


class Bounds(NamedTuple):
    """Where a number lies. A number without bounds is finite, and `why` says what it may be."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # whether `least` itself is excluded
    below: bool = False  # whether `most` itself is excluded
    why: str = ""

    def hold(self, x: float) -> bool:
        low = x > self.least if self.above else x >= self.least
        return low and (x < self.most if self.below else x <= self.most)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least}"
        high = f"{'below' if self.below else 'at most'} {self.most}"
        ends = [t for t, end in ((low, self.least), (high, self.most)) if math.isfinite(end)]
        return " and ".join(ends) or "that is finite"


Count = Annotated[int, Bounds(1)]
Whole = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0, above=True)]
Share = Annotated[float, Bounds(0, 1)]
BelowOne = Annotated[float, Bounds(0, 1, below=True)]
AtLeastOne = Annotated[float, Bounds(1)]
AboveOne = Annotated[float, Bounds(1, above=True)]
Part = Annotated[float, Bounds(0, 1, above=True)]
Fraction = Annotated[float, Bounds(0, 1, above=True, below=True)]
Grey = Annotated[int, Bounds(0, 255)]
LogScale = Annotated[float, Bounds(-20, 20)]
Hue = Annotated[float, Bounds(0, 0.5)]
AxisSize = Annotated[int, Bounds(-1)]
Seed = Annotated[int, Bounds(0, 2**32 - 1)]  # JAX's keys take 32 bits
Workers = Annotated[int, Bounds(0, 1024)]
Threads = Annotated[int, Bounds(1, 1024)]
Bias = Annotated[float, Bounds(why="a constant that is added to all logits")]
NotNegative = Annotated[float, Bounds(0)]


class Settings:
    """A group of settings, which checks the type and the bounds of each when it is made."""

    group = ""  # what stands before the names of its settings, such as "optimizer."

    def __init_subclass__(cls, group: str = ""):
        cls.group = group

    def __post_init__(self):
        for name, kind in hints(type(self)).items():
            value = getattr(self, name)
            self.require(fits(value, kind), name, f"must be {in_words(kind)}")

    def require(self, condition: bool, name: str, what: str):
        """Refuse the setting `name` unless `condition` holds; `what` says what to do."""
        if not condition:
            raise InvalidSetting(f"{self.group}{name}={getattr(self, name)!r} {what}")

    def require_multiple(self, name: str, by: str, *, times: int = 1):
        """Refuse the setting `name` unless it, `times` so much, is a multiple of another."""
        product = f"times {times} " if times > 1 else ""
        fits = getattr(self, name) * times % getattr(self, by) == 0
        self.require(fits, name, f"{product}must be a multiple of {by}={getattr(self, by)}")

    def refuse_ignored(self, ignored: bool, name: str, why: str):
        """Refuse a setting that is changed from its default where it has no effect."""
        default = type(self).__dataclass_fields__[name].default
        what = f"has no effect, as {why}: leave it at {default}"
        self.require(not ignored or getattr(self, name) == default, name, what)


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """The settings of a group and their types, with bounds."""
    found = get_type_hints(kind, include_extras=True)
    return {name: found[name] for name in kind.__dataclass_fields__}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as settings have them, and within its bounds."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        bounds = [each for each in parts[1:] if isinstance(each, Bounds)]
        return fits(value, parts[0]) and all(each.hold(value) for each in bounds)
    if origin is Literal:
        return value in parts
    if origin in (types.UnionType, Union):
        return any(fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(value) == len(parts) and all(map(fits, value, parts))
    if kind is str:
        return isinstance(value, str) and bool(value.strip())
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def in_words(kind: Any) -> str:
    """What `fits` asks for, for a person."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " ".join([in_words(parts[0]), *(str(x) for x in parts[1:] if isinstance(x, Bounds))])
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin in (types.UnionType, Union):
        return " or ".join(map(in_words, parts))
    if origin is tuple:
        if parts[-1] is Ellipsis:
            return f"a tuple of any length, each {in_words(parts[0])}"
        return f"a tuple ({', '.join(map(in_words, parts))})"
    names = {int: "a whole number", float: "a number", str: "text, not empty"}
    names |= {type(None): "None", bool: "True or False"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))

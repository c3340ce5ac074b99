"""A choice by its name: a record of a table, or `package.module:NAME` from outside the tree."""

import difflib
import importlib
from collections.abc import Mapping
from typing import TypeVar

Record = TypeVar("Record")


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

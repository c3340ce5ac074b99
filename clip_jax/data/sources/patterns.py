"""The files that a pattern names, on a disk or behind a URL."""

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Sequence

import bracex
import fsspec

from clip_jax import storage

MOST_FILES = 1_000_000  # LAION-5B has a quarter of that


def expand(pattern: str) -> list[str]:
    """The files that a pattern with {a,b}, {00..99}, * and ? names, in order.

    Raises:
      FileNotFoundError: nothing matches, or a file that is named without a wildcard is not there.
    """
    paths, missing = [], []
    for part in _braces(pattern):
        found = (
            _expand_url(part) if storage.is_url(part) else _expand_path(os.path.expanduser(part))
        )
        paths += sorted(found)
        if not found:
            missing.append(part)
    if not paths:
        raise FileNotFoundError(f"{pattern!r} matches no file")
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the files that {pattern!r} names are not there; the first is "
            f"{missing[0]}"
        )
    return paths


def expand_folder(location: str, endings: Sequence[str]) -> tuple[list[str], str | None]:
    """The files that a pattern names; of a folder those with an ending, and what is left out of it.

    Raises:
      FileNotFoundError: as `expand`, and for a folder without such a file.
    """
    if not storage.is_folder(location):
        return expand(location), None
    folder = location.rstrip("/") or "/"
    paths, others, deeper = [], [], []
    for path, is_file in _entries_of(folder):
        name = os.path.basename(path.rstrip("/"))
        if not name.startswith("."):
            wanted = paths if name.lower().endswith(tuple(endings)) else others
            (wanted if is_file else deeper).append(path)
    said = []
    if others:
        kinds = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in others)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
        said.append(f"{len(others):_} files are left out ({counts}), such as {min(others)}")
    if deeper:
        said.append(
            f"{len(deeper):_} folders in it are not looked into, such as {min(deeper)}; a pattern such as "
            f"{folder}/*/*{endings[0]} names what lies in them"
        )
    if not paths:
        more = f": {said[-1]}" if deeper else ""
        raise FileNotFoundError(f"{location!r} has no file in it that ends in {endings[0]}{more}")
    return sorted(paths), "; ".join(said) or None


def _entries_of(folder: str) -> list[tuple[str, bool]]:
    """The files and folders in a folder, and whether each is a file."""
    if not storage.is_url(folder):
        with os.scandir(os.path.expanduser(folder)) as entries:
            return [(entry.path, entry.is_file()) for entry in entries]
    filesystem, name = fsspec.core.url_to_fs(folder)
    found = storage.retry(lambda: filesystem.ls(name, detail=True), folder)
    return [(filesystem.unstrip_protocol(one["name"]), one["type"] == "file") for one in found]


def _braces(pattern: str) -> list[str]:
    """A pattern for each choice in braces that are no part of a folder's name."""
    folder, name = os.path.split(pattern)
    if storage.is_url(pattern) or not os.path.isdir(os.path.expanduser(folder)):
        return _choices(pattern)
    whole = os.path.exists(os.path.expanduser(pattern))
    return [os.path.join(folder, part) for part in ([name] if whole else _choices(name))]


def _choices(pattern: str) -> list[str]:
    try:
        return bracex.expand(pattern, limit=MOST_FILES)
    except (bracex.ExpansionLimitException, RecursionError) as error:
        raise ValueError(f"{pattern!r:.200} names more than {MOST_FILES:_} files") from error


def _expand_path(pattern: str) -> list[str]:
    """The files that a pattern names; brackets that are part of a name are no pattern."""
    if os.path.exists(pattern):
        return [pattern]
    folder, name = os.path.split(pattern)
    if folder and os.path.isdir(folder):
        return glob.glob(os.path.join(glob.escape(folder), name))
    return glob.glob(pattern)


def _expand_url(pattern: str) -> list[str]:
    if not any(character in pattern for character in "*?["):
        return [pattern]
    filesystem, path = fsspec.core.url_to_fs(pattern)
    if "[" in pattern and "*" not in pattern and "?" not in pattern and storage.is_file(pattern):
        return [pattern]
    folder, _, name = pattern.rpartition("/")
    if not storage.is_web(pattern) and not any(character in folder for character in "*?["):
        # Sizes and versions come with such a listing, and are asked for next.
        known = storage.listing(folder)
        return [f"{folder}/{one}" for one in known if fnmatch.fnmatchcase(one, name)]
    return [filesystem.unstrip_protocol(name) for name in filesystem.glob(path)]

"""The files below a folder, on a disk or behind a URL: images, files beside them, and skipped files."""

import os
from collections import Counter
from collections.abc import Iterator

import fsspec

from clip_jax import storage
from clip_jax.data.images.formats import is_image

ABOUT = {"classnames.txt", "dataset_type.txt", "zeroshot_classification_templates.txt"}


def files_below(root: str, *, without: str) -> list[str]:
    """Paths from `root` on of all files that are not hidden, in order. Links are followed once.

    The folder `without`, which is ours, is passed over.
    """
    found = _remote(root) if storage.is_url(root) else _local(root, os.path.realpath(without))
    return sorted(found, key=lambda path: path.split("/"))


def folders_of(root: str, *, without: str) -> list[str]:
    """The folders in a folder of this disk that are not hidden, and of links those outside of it."""
    top, ours = os.path.realpath(root), os.path.realpath(without)
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    return [name for name in names if _is_wanted(f"{root}/{name}", top, {ours})]


def _local(root: str, ours: str) -> Iterator[str]:
    top = os.path.realpath(root)
    seen = {ours}
    for at, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if _is_wanted(os.path.join(at, name), top, seen)]
        below = os.path.relpath(at, root)
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in files if not name.startswith("."))


def _is_wanted(path: str, top: str, seen: set[str]) -> bool:
    """Whether a folder is neither hidden nor read at another place: of a link, one outside of `top`."""
    if os.path.basename(path).startswith("."):
        return False
    real = os.path.realpath(path)
    if not os.path.islink(path):
        return real not in seen
    inside = os.path.commonpath([real, top]) in (real, top)
    if inside or real in seen:
        return False
    seen.add(real)
    return True


def _remote(root: str) -> Iterator[str]:
    filesystem, top = fsspec.core.url_to_fs(root)
    found = storage.retry(lambda: filesystem.find(top), root)
    # Some file systems name files with a slash at the start, and some folders without one.
    top = top.strip("/")
    paths = (path.strip("/").removeprefix(top).strip("/") for path in found)
    return (path for path in paths if not any(part.startswith(".") for part in path.split("/")))


def left_out(files: list[str], root: str) -> str | None:
    """What a person should know of files that are not read."""
    others = [path for path in files if not is_image(path) and os.path.basename(path) not in ABOUT]
    if not others:
        return None
    kinds = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in others)
    said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(8))
    return f"{len(others):_} files are skipped ({said}), such as {root}/{others[0]}"

"""Image files in a folder for each class, as ImageNet's validation set and ImageFolder have them."""

import os
import re
from collections.abc import Iterator

import fsspec
import numpy as np
import xxhash
from absl import logging

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.samples import Sample, SourceFormat
from clip_jax.data.sources import labels
from clip_jax.data.sources.image_files import read_image
from clip_jax.data.sources.packed_strings import PackedStrings

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
)  # fmt: skip
SPLITS = {"train", "val", "valid", "validation", "test"}
WORDNET = re.compile(r"n\d{8}")  # how ImageNet calls its folders


class FolderSource:
    """The images under each class folder of `root`, a path or a URL; the classes are in its order.

    A label is the place of the class folder among all of them, sorted by name. The caption is the
    name of the class: what classnames.txt says, or else the folder's name.
    """

    templates = None

    def __init__(self, root: str):
        self.name, self._root = f"folder:{root}", root.rstrip("/") or "/"
        self._files, counts, digest = PackedStrings(), {}, xxhash.xxh3_64()
        for folder, file in _listing(self._root):
            counts.setdefault(folder, 0)
            if file is not None:
                counts[folder] += 1
                self._files.append(file)
                digest.update(f"{folder}/{file}\n".encode("utf-8", "surrogateescape"))
        self.fingerprint = digest.hexdigest()
        self._folders = tuple(counts)
        self._first_S = np.cumsum([0, *counts.values()])
        _check_folders(self._root, counts)
        self.classes = labels.class_names(self._root, self._folders)
        if self.classes is None:
            self.classes = tuple(folder.replace("_", " ") for folder in self._folders)
            if all(map(WORDNET.fullmatch, self._folders)):
                logging.warning(
                    "%s: the classes are called %s and so on. Write FOLDER<TAB>NAME lines into %s/%s, "
                    "or set evaluation.classes.",
                    self.name, self._folders[0], self._root, labels.CLASSNAMES,
                )  # fmt: skip

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        label = int(np.searchsorted(self._first_S, index, side="right")) - 1
        folder = self._folders[label]
        key = f"{folder}/{self._files[index]}"
        image = read_image(f"{self._root}/{key}", key=key, shard=folder)
        captions = (self.classes[label],)
        return Sample(image=image, captions=captions, key=key, shard=folder, label=label)


def open_source(location: str, split: str, cfg: DataConfig) -> FolderSource:
    """The class folders in the folder `location`; it has no splits."""
    path = location if storage.is_url(location) else os.path.expanduser(location)
    if not storage.is_folder(path):
        kind = "is no folder" if storage.is_file(path) else "is not there"
        raise FileNotFoundError(f"{path} {kind} (data.source 'folder:{location}')")
    return FolderSource(path)


def _listing(root: str) -> Iterator[tuple[str, str | None]]:
    """Class folders in order, each with None and then with the images below it, in order."""
    if storage.is_url(root):
        yield from _remote_listing(root)
        return
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    for folder in folders:
        yield folder, None
        top = os.path.join(root, folder)
        below = [
            os.path.relpath(os.path.join(at, file), top)
            for at, _, files in os.walk(top, followlinks=True)
            for file in files
            if _is_image(file)
        ]
        yield from ((folder, file) for file in sorted(below))


def _remote_listing(root: str) -> Iterator[tuple[str, str | None]]:
    filesystem, top = fsspec.core.url_to_fs(root)
    found = storage.retry(lambda: filesystem.find(top), root)
    # Some file systems name files with a slash at the start, and some folders without one.
    top = top.strip("/")
    paths = [path.strip("/").removeprefix(top).strip("/") for path in found]
    pairs = [path.partition("/")[::2] for path in paths if "/" in path and path[0] != "."]
    last = None
    for folder, file in sorted(pairs):
        if folder != last:
            yield folder, None
            last = folder
        if _is_image(file):
            yield folder, file


def _is_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not os.path.basename(path).startswith(".")


def _check_folders(root: str, counts: dict[str, int]):
    if not counts:
        raise ValueError(f"{root} has no folders in it; there must be one of images for each class")
    if splits := SPLITS.intersection(counts):
        raise ValueError(
            f"{root} has folders called {', '.join(sorted(splits))}, which are no classes: name one "
            f"of them, such as folder:{root}/{min(splits)}"
        )
    empty = [folder for folder, count in counts.items() if not count]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(counts)} class folders in {root} have no image in them: "
            f"{', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}. Remove or fill them, since "
            "each counts as a class"
        )


FORMAT = SourceFormat(open_source)

"""Image files in a folder: one for each class, as ImageNet has them, or with captions beside them."""

import os
import re

import numpy as np
import xxhash
from absl import logging

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.images.formats import is_image
from clip_jax.data.samples import Sample, Source, SourceFormat, Split
from clip_jax.data.sources import labels, pairs, splits
from clip_jax.data.sources.caption_files import LISTS, CaptionFilesSource, beside, open_list_inside
from clip_jax.data.sources.folder_listing import files_below, folders_of, left_out
from clip_jax.data.sources.image_files import read_image
from clip_jax.data.sources.list_format import DELIMITED, LINES
from clip_jax.data.sources.list_index import cache_folder
from clip_jax.data.sources.packed_strings import PackedStrings

WORDNET = re.compile(r"n\d{8}")  # how ImageNet calls its folders


class FolderSource:
    """The images under each class folder of `root`, a path or a URL; the classes are in its order.

    A label is the place of the class folder among all of them, sorted by name, or by number where
    all names are numbers. The caption is the name of the class: what classnames.txt says, or else
    the folder's name.
    """

    templates = None

    def __init__(self, root: str, files: list[str], cfg: DataConfig):
        self.name, self._root = f"folder:{root}", root
        by_folder: dict[str, list[str]] = {}
        for path in files:
            folder, slash, file = path.partition("/")
            if slash:
                by_folder.setdefault(folder, [])
                if is_image(file):
                    by_folder[folder].append(file)
        if not storage.is_url(root):  # where empty folders are seen
            for name in folders_of(root, without=cfg.data_dir):
                by_folder.setdefault(name, [])
        self.folders = _in_order(root, list(by_folder))
        self._files, digest = PackedStrings(), xxhash.xxh3_64()
        for folder in self.folders:
            for file in sorted(by_folder[folder]):
                self._files.append(file)
                digest.update(f"{folder}/{file}\n".encode("utf-8", "surrogateescape"))
        self._files.share(cache_folder(cfg.data_dir))
        self.fingerprint = digest.hexdigest()
        counts = {folder: len(by_folder[folder]) for folder in self.folders}
        self._first_S = np.cumsum([0, *counts.values()])
        _check_folders(root, counts, files)
        outside = [path for path in files if "/" not in path and is_image(path)]
        notes = [left_out(files, root)]
        if outside:
            notes.append(f"{len(outside)} images lie in no class folder, such as {outside[0]}")
        self.notes = tuple(filter(None, notes))
        self._find_classes()

    def _find_classes(self):
        self.classes = labels.class_names(self._root, self.folders)
        if self.classes is None:
            self.classes = tuple(folder.replace("_", " ") for folder in self.folders)
        codes = all(map(WORDNET.fullmatch, self.classes))
        if codes or all(name.isdigit() for name in self.classes):
            logging.warning(
                "%s: the classes are called %s and so on. Write FOLDER<TAB>NAME lines into %s/%s, "
                "or set evaluation.classes.",
                self.name, self.classes[0], self._root, labels.CLASSNAMES,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        label = int(np.searchsorted(self._first_S, index, side="right")) - 1
        folder = self.folders[label]
        key = f"{folder}/{self._files[index]}"
        path = f"{self._root}/{key}"
        return Sample(
            image=read_image(path, key=key, shard=folder),
            captions=(self.classes[label],),
            key=key,
            shard=folder,
            label=label,
            path=path,
        )


def open_source(location: str, split: Split, cfg: DataConfig) -> Source:
    """What is in the folder `location`: a list, captions beside images, or folders of classes."""
    path = location if storage.is_url(location) else os.path.expanduser(location)
    path = path.rstrip("/") or "/"
    if not storage.is_folder(path):
        kind = "is no folder" if storage.is_file(path) else "is not there"
        raise FileNotFoundError(f"{path} {kind} (data.source 'folder:{location}')")
    files = files_below(path, without=cfg.data_dir)
    if (listed := open_list_inside(path)) is not None:
        source = pairs.open_source(listed, split, cfg)
        images = sum(map(is_image, files))
        if images > len(source):
            source.notes += (
                f"{images:_} images lie in {path}, and {listed} names {len(source):_}",
            )
        return source
    lists = [file for file in files if file.endswith(tuple(f"/{name}" for name in LISTS))]
    if lists:
        raise ValueError(
            f"{path}/{lists[0]} names the images of its folder, which is no class: read "
            f"folder:{path}/{os.path.dirname(lists[0])}"
        )
    if "metadata.parquet" in files:
        raise ValueError(
            f"{path} holds metadata.parquet, which names its images: read parquet:{path}/metadata.parquet"
        )
    if found := beside(files, cfg):
        return CaptionFilesSource(path, files, found, cfg, split)
    return FolderSource(path, files, cfg)


def _in_order(root: str, folders: list[str]) -> tuple[str, ...]:
    """Class folders by name, or by number where all names are numbers."""
    if not all(folder.isdecimal() for folder in folders):
        return tuple(sorted(folders))
    by_number: dict[int, str] = {}
    for folder in folders:
        if (other := by_number.setdefault(int(folder), folder)) != folder:
            raise ValueError(
                f"{root}: the class folders {other} and {folder} are one number: rename one"
            )
    return tuple(by_number[number] for number in sorted(by_number))


def _check_folders(root: str, counts: dict[str, int], files: list[str]):
    if not counts:
        images = sum(map(is_image, files))
        found = f"{images:_} images without captions beside them and " if images else ""
        raise ValueError(
            f"{root} has {found}no folders in it; there must be one of images for each class, or a .txt "
            f"or .json file beside each image, or a list that pairs: reads{_lists(files, root)}"
        )
    nested = {path.partition("/")[0] for path in files if path.count("/") > 1 and is_image(path)}
    splits.refuse_folders(root, counts, nested)
    alone = next(iter(counts))
    if len(counts) == 1 and alone.lower() in splits.FILLERS and not nested:
        raise ValueError(
            f"{root} has a single folder, {alone}, which is no class: write a .txt file beside each image, "
            f"or a list of images and captions that pairs: reads{_lists(files, root)}"
        )
    if len(counts) == 1 and nested:
        raise ValueError(
            f"{root} has a single folder, {alone}, with folders in it, which would be one class: read "
            f"folder:{root}/{alone}"
        )
    empty = [folder for folder, count in counts.items() if not count]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(counts)} class folders in {root} have no image in them: "
            f"{', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}. Remove or fill them, since "
            "each counts as a class"
        )


def _lists(files: list[str], root: str) -> str:
    """The file in a folder that may be its list of captions, for a message."""
    known = (*DELIMITED, *LINES, *pairs.LAYOUTS)
    found = (path for path in files if "/" not in path and path.lower().endswith(known))
    return next((f", such as pairs:{root}/{path}" for path in found), "")


FORMAT = SourceFormat(open_source)

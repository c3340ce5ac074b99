"""Reads datasets that TensorFlow Datasets has prepared as ArrayRecord, without TensorFlow."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
import xxhash
from tensorflow_datasets.core import file_adapters

from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample, Sample, SourceFormat
from clip_jax.data.sources import columns

LABEL_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
TEST_SPLITS = ("test", "validation", "val")


class TfdsSource:
    """One split of a prepared dataset.

    The image and the captions are features of type Image and Text, found by their names where
    there are several. A dataset with classes and no text is captioned with the class names.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        name: str,
        image_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        templates: Sequence[str] = LABEL_TEMPLATES,
    ):
        self._again = functools.partial(
            TfdsSource,
            directory,
            split,
            name=name,
            image_column=image_column,
            caption_column=caption_column,
            label_column=label_column,
            templates=templates,
        )
        self.name = name
        self._prefix = f"{name.removeprefix('tfds:')}-{split}"
        builder = tfds.builder_from_directory(directory)
        features = _flatten(builder.info.features)
        self._image = _find("image", image_column, features, tfds.features.Image, name)
        # One inside of something is of a part, such as coco_captions' objects, not of the image.
        labels = [
            key
            for key, kind in features.items()
            if isinstance(kind, tfds.features.ClassLabel) and "/" not in key
        ]
        if label_column is not None:
            columns.find_column("label", label_column, (), labels, where=name)
        self._label = label_column or ("label" if "label" in labels else next(iter(labels), None))
        self.classes = None
        if self._label is not None:
            self.classes = tuple(text.replace("_", " ") for text in features[self._label].names)
        self._caption = None
        texts = [key for key, kind in features.items() if _is_text(kind)]
        if texts or caption_column is not None or self.classes is None:
            self._caption = _find("caption", caption_column, features, tfds.features.Text, name)
        self._group = "group" if "group" in texts else None
        self.templates = tuple(templates) if self.classes else None
        self._data = builder.as_data_source(
            split, decoders={self._image: tfds.decode.SkipDecoding()}
        )
        self.fingerprint = fingerprint(directory, split)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        key = f"{self._prefix}/{index:06d}"
        try:
            example = self._data[index]
        except Exception as error:
            # ArrayRecord checks its chunks and has no exception type of its own.
            raise BadSample("unreadable-record", key=key, shard=self._prefix) from error
        label = None
        if self._label is not None and feature(example, self._label) >= 0:
            label = int(feature(example, self._label))
        if self._caption is not None:
            captions = texts_of(feature(example, self._caption))
        else:
            captions = [LABEL_TEMPLATES[0].format(self.classes[label])] if label is not None else []
        if not captions:
            raise BadSample("missing-caption", key=key, shard=self._prefix)
        return Sample(
            image=feature(example, self._image),
            captions=tuple(captions),
            key=key,
            shard=self._prefix,
            label=label,
            group=(example[self._group].decode() or None) if self._group else None,
        )

    def __reduce__(self):
        return self._again, ()


def open_source(location: str, split: str, cfg: DataConfig) -> TfdsSource:
    """A dataset by its name, such as "coco_captions/2014:1.1.0", or by its folder."""
    directory = find_directory(location, cfg)
    splits = list(tfds.builder_from_directory(directory).info.splits)
    name = "train" if split == "train" else _test_split(splits)
    if name not in splits:
        raise ValueError(
            f"tfds:{location} has no {split} split; it has {', '.join(splits)} ({directory})"
        )
    return TfdsSource(
        directory,
        name,
        name=f"tfds:{location}",
        image_column=cfg.image_column,
        caption_column=cfg.caption_column,
        label_column=cfg.label_column,
    )


def has_test_split(location: str, cfg: DataConfig) -> bool:
    """Whether the dataset has a split called test or validation."""
    builder = tfds.builder_from_directory(find_directory(location, cfg))
    return _test_split(list(builder.info.splits)) is not None


def _test_split(splits: Sequence[str]) -> str | None:
    return next((name for name in TEST_SPLITS if name in splits), None)


def find_directory(location: str, cfg: DataConfig) -> Path:
    roots = [Path(cfg.data_dir), Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))]
    name, _, version = location.partition(":")
    candidates = [Path(name).expanduser(), *(root.expanduser() / name for root in roots)]
    for candidate in candidates:
        for folder in (candidate / version if version else candidate, *_versions(candidate)):
            if (folder / "features.json").is_file() and (not version or folder.name == version):
                return _check_format(folder, location)
    searched = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"tfds:{location} is not prepared; looked in {searched}. Prepare it with tensorflow_datasets "
        f"as {name!r} with file_format='array_record', or set data.data_dir to where it is"
    )


def _versions(folder: Path) -> list[Path]:
    """The versions under a dataset's folder, newest first, of the first config that has any."""

    def number(path: Path):
        return tuple(int(part) for part in path.name.split("."))

    if not folder.is_dir():
        return []
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    versions = [path for path in below if all(part.isdigit() for part in path.name.split("."))]
    if versions:
        return sorted(versions, key=number, reverse=True)
    return next((found for path in below if (found := _versions(path))), [])


def _check_format(folder: Path, location: str) -> Path:
    found = tfds.builder_from_directory(folder).info.file_format
    if found != file_adapters.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"tfds:{location} in {folder} is stored as {found.value}, which has no random access; "
            "prepare it again with file_format='array_record'"
        )
    return folder


def _flatten(features, prefix: str = "") -> dict:
    """Feature types by their path, such as "captions/text", also inside sequences."""
    found = {}
    for key, kind in sorted(features.items()):  # the stored order changes between loads
        path = f"{prefix}{key}"
        inner = kind.feature if isinstance(kind, tfds.features.Sequence) else kind
        if isinstance(inner, tfds.features.FeaturesDict):
            found.update(_flatten(inner, f"{path}/"))
        else:
            found[path] = kind
    return found


def _is_text(kind, of: type = tfds.features.Text) -> bool:
    inner = kind.feature if isinstance(kind, tfds.features.Sequence) else kind
    return isinstance(inner, of)


def _find(role: str, given: str | None, features: dict, of: type, where: str) -> str:
    known = columns.IMAGE_NAMES if role == "image" else columns.CAPTION_NAMES
    if given is not None:
        return columns.find_column(role, given, known, list(features), where=where)
    fitting = [key for key, kind in features.items() if _is_text(kind, of)]
    by_last_name = {key.split("/")[-1]: key for key in reversed(fitting)}
    for name in (*known, *by_last_name):
        if name in by_last_name:
            return by_last_name[name]
    raise ValueError(
        f"{where} has no feature of type {of.__name__} for the {role}; its features are "
        f"{', '.join(features)}"
    )


def feature(example: dict, path: str):
    for key in path.split("/"):
        # A sequence of dictionaries arrives as a list of them.
        example = [item[key] for item in example] if isinstance(example, list) else example[key]
    return example


def texts_of(value) -> list[str]:
    values = [value] if isinstance(value, bytes | str) else value
    texts = [
        item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in values
    ]
    return [text for text in texts if text.strip()]


def fingerprint(directory: Path, split: str) -> str:
    digest = xxhash.xxh3_64(split.encode())
    digest.update((directory / "features.json").read_bytes())
    for path in sorted(directory.glob("*array_record*")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()


FORMAT = SourceFormat(open_source, has_test_split)

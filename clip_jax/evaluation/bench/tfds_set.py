"""A task's samples in TensorFlow Datasets, with labels that VTAB and VOC derive from objects."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample, Sample
from clip_jax.data.sources.tfds import feature, find_directory, fingerprint, texts_of
from clip_jax.evaluation.bench.tasks import Task

# Lower ends of the classes, from the tasks of VTAB (github.com/google-research/task_adaptation).
CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = 3  # types below it are cars, vans and trucks
NO_VEHICLE = 1000.0  # metres
FEWEST_OBJECTS = 3  # in a scene of CLEVR


class TfdsSet:
    """One split of a prepared data set, as `task` says.

    Raises:
      FileNotFoundError: it is not prepared. ValueError: it has other classes than the task.
    """

    lost, notes, templates = 0, (), None

    def __init__(self, task: Task, cfg: DataConfig, *, split: str | None = None):
        assert task.tfds is not None
        split = split or task.split
        directory = find_directory(task.tfds, cfg)
        builder = tfds.builder_from_directory(directory)
        if split.partition("[")[0].partition("+")[0] not in builder.info.splits:
            raise FileNotFoundError(f"{directory} has no split {split}: prepare the data set again")
        self._task, self.name = task, f"tfds:{task.tfds} ({directory})"
        self._key = f"{task.tfds}-{split}"
        decoders = {"image": tfds.decode.SkipDecoding()}
        self._data = builder.as_data_source(split, decoders=decoders)
        self.fingerprint = fingerprint(directory, f"{split} {task.derive}")
        self.classes = None if task.kind == "retrieval" else _names(builder, task, directory)
        self._objects = None
        if task.derive == "voc_objects":
            self._objects = self._all_objects(builder, split)

    def _all_objects(self, builder, split: str) -> list[tuple[int, int]]:
        """Image and place of every object: each is a sample."""
        only = {"image": tfds.decode.SkipDecoding()}
        data = builder.as_data_source(split, decoders=only)
        counts = [len(_column(data[index], "objects", "label")) for index in range(len(data))]
        return [(index, place) for index, count in enumerate(counts) for place in range(count)]

    def __len__(self) -> int:
        return len(self._data if self._objects is None else self._objects)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, place = (index, 0) if self._objects is None else self._objects[index]
        key = f"{self._key}/{index:06d}"
        try:
            example = self._data[row]
        except Exception as error:
            # ArrayRecord checks its chunks and has no exception type of its own.
            raise BadSample("unreadable-record", key=key, shard=self._key) from error
        image, task = example["image"], self._task
        if task.kind == "retrieval":
            captions = texts_of(feature(example, "captions/text"))[: task.captions]
            return Sample(image, tuple(captions), key, self._key)
        if task.derive == "voc_labels":
            labels = tuple(sorted({int(label) for label in example["labels"]}))
            return Sample(image, ("",), key, self._key, labels=labels)
        if task.derive == "voc_objects":
            label = int(_column(example, "objects", "label")[place])
            image = _crop(image, np.asarray(_column(example, "objects", "bbox")[place]))
        else:
            label = DERIVED[task.derive](example) if task.derive else int(example["label"])
        if self.classes is not None and not 0 <= label < len(self.classes):
            raise BadSample(
                f"layout-label-{label}-of-{len(self.classes)}", key=key, shard=self._key
            )
        return Sample(image, (f"{label}",), key, self._key, label=label)


def clevr_count(example: Any) -> int:
    """How many objects a scene has, from 3 on."""
    return len(_column(example, "objects", "color")) - FEWEST_OBJECTS


def clevr_distance(example: Any) -> int:
    """How far the closest object is from the camera, in six steps."""
    depth = min(float(xyz[2]) for xyz in _column(example, "objects", "pixel_coords"))
    return int(np.searchsorted(CLEVR_DISTANCES, depth)) - 1


def kitti_distance(example: Any) -> int:
    """How far the closest car, van or truck is ahead, in three steps; 3: there is none."""
    kinds = _column(example, "objects", "type")
    places = _column(example, "objects", "location")
    ahead = [float(xyz[2]) for kind, xyz in zip(kinds, places) if int(kind) < KITTI_VEHICLES]
    return int(np.searchsorted(KITTI_DISTANCES, min([*ahead, NO_VEHICLE]))) - 1


DERIVED: dict[str, Callable[[Any], int]] = {
    "clevr_count": clevr_count,
    "clevr_distance": clevr_distance,
    "kitti_distance": kitti_distance,
}


def _column(example: Any, group: str, name: str):
    """One feature of all objects, which arrive as a dictionary of arrays or a list of dictionaries."""
    found = example[group]
    return found[name] if isinstance(found, dict) else [entry[name] for entry in found]


def _crop(image: bytes, box: np.ndarray) -> bytes:
    """The part of an image within (top, left, bottom, right), shares of its size, as PNG."""
    with Image.open(io.BytesIO(image), formats=["JPEG", "PNG"]) as whole:
        top, left, bottom, right = box * np.array([whole.height, whole.width] * 2)
        part = whole.crop((round(left), round(top), round(right), round(bottom)))
        buffer = io.BytesIO()
        part.save(buffer, "PNG")
    return buffer.getvalue()


def _names(builder, task: Task, directory: Path) -> tuple[str, ...] | None:
    """The names of the classes as TensorFlow Datasets has them, in the order of the labels."""
    features = builder.info.features
    kind = dict(features.items()).get("label")
    if task.derive in ("voc_objects", "voc_labels"):
        kind = features["labels"].feature
    if task.derive in DERIVED or not isinstance(kind, tfds.features.ClassLabel):
        return None
    expected = 1000 if task.subset else task.classes
    if expected is not None and kind.num_classes != expected:
        raise ValueError(f"{directory} has {kind.num_classes} classes; the task has {expected}")
    # SUN397 writes /a/abbey and /a/apartment_building/outdoor.
    return tuple(
        (name[3:] if name[:1] == name[2:3] == "/" else name).replace("/", " ").replace("_", " ")
        for name in kind.names
    )

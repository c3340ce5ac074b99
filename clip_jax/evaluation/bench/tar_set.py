"""A set of tars in CLIP_benchmark's layout: test/N.tar, classnames.txt, the templates' file."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clip_jax import storage
from clip_jax.data.samples import BadSample, Sample
from clip_jax.data.sources.columns import decode
from clip_jax.data.sources.labels import parse_label
from clip_jax.data.sources.tar_index import open_index
from clip_jax.data.sources.tar_run import take_apart
from clip_jax.evaluation.bench.tasks import Task
from clip_jax.evaluation.prompts import has_place

SPLIT, CLASSES, TEMPLATES = "test", "classnames.txt", "zeroshot_classification_templates.txt"
IMAGES = ("webp", "png", "jpg", "jpeg")
WRONG = "layout-"  # starts the reasons of samples that do not fit the task: one of them ends it


class TarSet:
    """The samples of a task. A sample is an image and its label: NUMBER.cls, or one or more in .npy.

    The layout is that of CLIP_benchmark's webdataset_builder.py: a set for retrieval has a .txt with
    a caption on each line, one with several labels an .npy of zeros and ones, and the sets of WILDS
    and of fairness metadata in an .npy beside the .cls.

    Raises:
      ValueError: a file does not fit the layout or the task; the message names it.
    """

    lost, notes = 0, ()

    def __init__(self, folder: Path, task: Task, cache: Path, *, split: str = SPLIT):
        self._task, self.name = task, str(folder)
        self.classes = self.templates = None
        if task.kind in ("classification", "multilabel"):
            self.classes = read_names(folder / CLASSES, task.classes)
            self.templates = read_templates(folder / TEMPLATES)
        paths = shards(folder / split)
        self._index = open_index([str(path) for path in paths], cache)
        self.fingerprint = self._index.fingerprint
        for path, shard in zip(paths, self._index.shards):
            if shard.problem:
                raise ValueError(f"{path} {shard.problem}")
        _check_sizes(folder / split, len(self._index))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard, start, end = self._index.locate(index)
        path = Path(self._index.paths[shard])
        key, parts, damaged = take_apart(storage.read_range(str(path), start, end))
        key = f"{path}: {key or start}"
        image = next((parts[name] for name in IMAGES if name in parts), None)
        if image is None:
            raise BadSample(damaged or "missing-image", key=key, shard=path.name)
        try:
            return self._sample(image, parts, key, path)
        except UnicodeDecodeError as error:
            raise BadSample("caption-not-utf8", key=key, shard=path.name) from error

    def _sample(self, image: bytes, parts: dict[str, bytes], key: str, path: Path) -> Sample:
        task = self._task

        def refuse(reason: str) -> BadSample:
            return BadSample(reason, key=key, shard=str(path))

        if task.kind == "retrieval":
            captions = [line for line in decode(parts.get("txt", b"")).splitlines() if line.strip()]
            if not captions:
                raise refuse("missing-caption")
            return Sample(image, tuple(captions[: task.captions]), key, path.name)
        count = len(self.classes or ())
        try:
            needs_array = task.kind == "multilabel" or task.group is not None
            values = np.load(io.BytesIO(parts["npy"])).reshape(-1) if needs_array else None
        except (KeyError, ValueError, EOFError) as error:
            raise refuse(f"{WRONG}npy-cannot-be-read") from error
        if task.kind == "multilabel":
            if len(values) != count:
                raise refuse(f"{WRONG}npy-of-{len(values)}-numbers-for-{count}-classes")
            labels = tuple(np.flatnonzero(values > 0).tolist())
            return Sample(image, ("",), key, path.name, labels=labels)
        label = parse_label(parts.get("cls"))
        if label is None:
            raise refuse(f"{WRONG}no-cls-with-a-number")
        if label >= count:
            raise refuse(f"{WRONG}label-{label}-of-{count}-classes")
        group = None if values is None else f"group_{int(values[task.group])}"
        names = (self.classes[label],)
        return Sample(image, names, key, path.name, label=label, group=group)


def read_names(path: Path, count: int | None) -> tuple[str, ...]:
    """Names of classes, one a line. A line may be empty: CLEVR Distance has a class without a word."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: it names the classes, one a line")
    names = tuple(line.strip() for line in path.read_text("utf-8-sig").rstrip("\n").split("\n"))
    if count is not None and len(names) != count:
        raise ValueError(f"{path} names {len(names)} classes; the task has {count}")
    return names


def read_templates(path: Path) -> tuple[str, ...] | None:
    """Prompts with {c}, one a line; None where there is no such file."""
    if not path.is_file():
        return None
    templates = tuple(
        line.strip() for line in path.read_text("utf-8-sig").split("\n") if line.strip()
    )
    odd = next((text for text in templates if not has_place(text)), None)
    if not templates or odd is not None:
        raise ValueError(f"{path} must have prompts with {{c}}, one a line; it has {odd!r}")
    return templates


def shards(folder: Path) -> Sequence[Path]:
    """The tars of a split, in the order of their numbers; all that nshards.txt counts."""
    found = {path.stem: path for path in folder.glob("*.tar")}
    count = folder / "nshards.txt"
    if not count.is_file():
        return [found[stem] for stem in sorted(found, key=lambda stem: (len(stem), stem))]
    number = parse_label(count.read_text())
    if number is None:
        raise ValueError(f"{count} must hold the number of tars beside it")
    missing = [f"{place}.tar" for place in range(number) if str(place) not in found]
    if missing or not number:
        raise FileNotFoundError(
            f"{count} counts {number} tars, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} not there: fetch the set again"
        )
    return [found[str(place)] for place in range(number)]


def _check_sizes(folder: Path, samples: int):
    path = folder / "sizes.json"
    if not path.is_file():
        return
    try:
        expected = sum(int(size) for size in json.loads(path.read_text()).values())
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must give the samples of each tar by its name") from error
    if expected != samples:
        raise ValueError(f"{path} counts {expected} samples, and the tars have {samples}")

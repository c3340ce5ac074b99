"""Where a task's data lie: its own source, tars in CLIP_benchmark's layout, TFDS, tables of the hub."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_jax import registry
from clip_jax.config import DataConfig
from clip_jax.data.samples import Sample, Source
from clip_jax.data.sources.registry import open_source
from clip_jax.evaluation.bench.tar_set import SPLIT, TarSet
from clip_jax.evaluation.bench.tasks import Task
from clip_jax.evaluation.prompts import (
    IMAGENET,
    SHIPPED,
    SIMPLE_TEMPLATES,
    Templates,
    check_prompts,
    read_classes,
    read_templates,
    shipped_lines,
)

# Modules that import what is heavy, by name.
TFDS_SET = "clip_jax.evaluation.bench.tfds_set:TfdsSet"
TABLE_SET = "clip_jax.evaluation.bench.hub:open_table"
QUESTIONS = "clip_jax.evaluation.bench.questions:open_questions"


class Missing(Exception):
    """The data of a task are nowhere; the text says where they come from."""


class Named:
    """A source with the names and prompts that a task gives its classes."""

    def __init__(
        self, source: Source, classes: Sequence[str] | None, templates: Templates | None, name: str
    ):
        self._source, self.classes, self.templates = source, classes, templates
        self.name, self.fingerprint, self.lost = name, source.fingerprint, source.lost
        self.notes, self.questions = source.notes, getattr(source, "questions", ())

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return self._source[index]


def open_task(
    task: Task, roots: Sequence[Path], cfg: DataConfig, *, split: str | None = None
) -> Named:
    """The samples of a task, with the names and the prompts of its classes.

    Tars under a root come first, because a person put them there for this; then what TensorFlow
    Datasets has prepared, then tables as Hugging Face's hub has them.

    Args:
      task: its files of names and prompts win over those of the data, and those over the shipped.
      roots: folders that hold the data of tasks.
      cfg: how they are read; `data_dir` keeps the indexes of tars.
      split: None: the one that is measured; "train": for probes.

    Raises:
      Missing: there are no data.
      ValueError, FileNotFoundError: what is there does not fit; the message names the file.
    """
    source, name = _find(task, roots, cfg, split)
    classes = read_classes(task.classnames) if task.classnames else source.classes
    templates = read_templates(task.templates) if task.templates else source.templates
    if task.kind in ("classification", "multilabel"):
        shipped = shipped_classes(task)
        from_tfds = task.source is None and source.name.startswith("tfds:")
        if from_tfds and shipped and not task.classnames:
            _check_order(shipped, classes, name)
            classes = shipped
        templates = templates or shipped_templates(task) or SIMPLE_TEMPLATES
        if not classes:
            raise ValueError(f"{name} has no names of classes: give the task a file, classnames")
        check_prompts(classes, templates, task.templates or name)
    return Named(source, classes, templates, name)


def _find(task: Task, roots: Sequence[Path], cfg: DataConfig, split: str | None):
    if task.source is not None:
        kind = "train" if split == "train" else "test"
        return open_source(task.source, kind, cfg), task.source
    folder = tar_folder(task, roots, split or SPLIT)
    if folder is not None:
        return TarSet(folder, task, Path(cfg.data_dir), split=split or SPLIT), str(folder)
    for record in (TABLE_SET,) if task.kind == "retrieval" else (QUESTIONS,):
        if task.kind in ("retrieval", "choice", "association"):
            found = registry.resolve("bench", record, {})(task, roots)
            if found is not None:
                return found, found.name
    if task.tfds is not None:
        for place in (*roots, Path(cfg.data_dir)):
            try:
                placed = dataclasses.replace(cfg, data_dir=str(place))
                part = split and task.split.replace("[80%:]", "[:80%]")
                part = "train" if split and "[" not in task.split else part
                found = registry.resolve("bench", TFDS_SET, {})(task, placed, split=part)
                return found, found.name
            except FileNotFoundError:
                continue
    raise Missing(where_from(task))


def open_train(task: Task, roots: Sequence[Path], cfg: DataConfig) -> Named | None:
    """The training split of a task of classification, for probes; None where there is none."""
    if task.kind != "classification" or task.derive == "voc_objects" or "+" in task.split:
        return None
    try:
        # VTAB trains on what comes before the part that is measured.
        return open_task(task, roots, cfg, split="train")
    except Missing:
        return None


def folders(task: Task) -> list[str]:
    """The folders under a root that a task's tars may lie in."""
    found = []
    for name in (task.name, *task.also):
        dashed = name.replace("/", "-")
        short = name.partition("/")[2] if name.startswith("fairness/") else None
        names = [
            f"wds/{name}",
            f"wds_{dashed}_test",
            f"wds_{dashed}",
            f"wds/wds_{dashed}",
            name,
            dashed,
        ]
        found += names + ([f"wds_{short}_test", f"wds/{short}"] if short else [])
    return list(dict.fromkeys(found))


def tar_folder(task: Task, roots: Sequence[Path], split: str = SPLIT) -> Path | None:
    """The first folder of a task that has tars of the split in it."""
    for root in roots:
        for name in folders(task):
            folder = root / name
            if next((folder / split).glob("*.tar"), None) is not None:
                return folder
            started = [folder / split / "nshards.txt", folder / "classnames.txt"]
            if split == SPLIT and any(path.is_file() for path in started):
                raise FileNotFoundError(
                    f"{folder / split} has no tars: fetch the set again (git lfs pull, if git "
                    "cloned it)"
                )
    return None


def where_from(task: Task) -> str:
    """Where the data of a task can be had, and the folder that they belong in."""
    places = []
    if task.tfds is not None:
        places.append(f"tensorflow_datasets {task.tfds} (file_format='array_record')")
    if task.hub is not None:
        places.append(f"huggingface.co/datasets/{task.hub}")
    if task.kind in ("classification", "multilabel", "retrieval"):
        name = (task.also or (task.name,))[-1].removeprefix("fairness/").replace("/", "-")
        owner = "djghosh" if task.name.startswith(("wilds", "fairness")) else "clip-benchmark"
        end = "_test" if owner == "djghosh" else ""
        places.append(f"huggingface.co/datasets/{owner}/wds_{name}{end} as ROOT/wds_{name}{end}")
    if task.name.startswith("sugar_crepe/"):
        file = task.name.partition("/")[2]
        places.append(
            f"github.com/RAIVNLab/sugar-crepe data/{file}.json as ROOT/sugar_crepe/{file}.json, with "
            "COCO's val2017 beside it"
        )
    if task.name.startswith("aro/"):
        file = task.name.partition("/")[2]
        places.append(
            f"github.com/mertyg/vision-language-models-are-bows as ROOT/aro/{file}.json, with images/"
        )
    return ", or ".join(places) or f"the source {task.source}"


# ---------------------------------------------------------------------------- what is shipped


def shipped_classes(task: Task) -> tuple[str, ...] | None:
    """The names of a task's classes that the package has."""
    if task.prompts == IMAGENET:
        return shipped_lines("imagenet_classes.txt")
    return _shipped("classes.json", task)


def shipped_templates(task: Task) -> tuple[str, ...] | None:
    """The prompts of a task that the package has."""
    if task.prompts == IMAGENET:
        return shipped_lines("imagenet_templates.txt")
    return _shipped("templates.json", task)


def _shipped(file: str, task: Task) -> tuple[str, ...] | None:
    found: dict[str, Any] = json.loads((SHIPPED / file).read_text("utf-8"))
    return tuple(found[task.name]) if task.name in found else None


def _check_order(shipped: Sequence[str], known: Sequence[str] | None, where: str):
    """Refuse data whose names for the classes are the shipped ones in another order."""
    if not known:
        return
    if len(known) != len(shipped):
        raise ValueError(f"{where} has {len(known)} classes; the task has {len(shipped)}")
    place_of = {_plain(name): place for place, name in enumerate(known)}
    for place, name in enumerate(shipped):
        if place_of.get(_plain(name), place) != place:
            raise ValueError(
                f"{where}: class {place} is {known[place]!r}, where the task has {name!r}: the data "
                "are in another order of classes than the names that are shipped"
            )


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())

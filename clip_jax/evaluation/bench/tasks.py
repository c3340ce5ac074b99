"""Tasks and suites: small tables in TOML, shipped with the package or written by a person."""

import dataclasses
import difflib
import fnmatch
import functools
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clip_jax.evaluation.evaluators import EVALUATORS
from clip_jax.runs.retention import Better

Label = Literal["clevr_count", "clevr_distance", "kitti_distance", "voc_objects", "voc_labels"]
TABLES = resources.files("clip_jax.evaluation.bench") / "suites"


class Kind(NamedTuple):
    """What is measured on tasks of a kind, and which metric stands in the table."""

    metrics: tuple[str, ...]  # names of evaluators
    main: str
    form: str  # the name that CLIP_benchmark has for it


KINDS = {
    "classification": Kind(
        ("zero_shot", "macro_f1", "worst_group"), "zero_shot_top1", "zeroshot_classification"
    ),
    "multilabel": Kind(("multilabel",), "multilabel_map", "zeroshot_classification"),
    "retrieval": Kind(("retrieval",), "recall_at_1", "zeroshot_retrieval"),
    "choice": Kind(("choice",), "choice_text", "image_caption_selection"),
    "association": Kind(("association",), "jaccard_10_12", "association"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One data set and how it is measured: a line of a table. suites/tasks.toml says what fields mean."""

    name: str
    title: str
    kind: str
    main: str  # the metric in the table, without "eval/"
    size: int | None = None
    classes: int | None = None
    source: str | None = None  # as in `data.source`; None: it is looked for under the roots
    classnames: str | None = None  # a file of names of classes; None: those of the data
    templates: str | None = None  # a file of prompts; None: those of the data, or the shipped ones
    tfds: str | None = None
    split: str = "test"
    derive: Label | None = None
    subset: bool = False
    prompts: str | None = None
    group: int | None = None
    captions: int | None = None  # of an image that count at most
    also: tuple[str, ...] = ()
    hub: str | None = None

    @property
    def evaluators(self) -> tuple[str, ...]:
        return KINDS[self.kind].metrics

    @property
    def better(self) -> Better:
        """Which way the main metric is better."""
        for name in self.evaluators:
            for metric, better in EVALUATORS[name].metrics.items():
                if fnmatch.fnmatchcase(self.main, metric):
                    return better
        raise AssertionError(self.main)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks, and means of their main metrics by name."""

    name: str
    tasks: tuple[Task, ...]
    averages: dict[str, tuple[str, ...]]  # names of tasks


def suite_names() -> list[str]:
    """The suites that are shipped."""
    names = (entry.name for entry in TABLES.iterdir())
    return sorted(
        name.removesuffix(".toml")
        for name in names
        if name.endswith(".toml") and name != "tasks.toml"
    )


def read_suite(name: str) -> Suite:
    """A suite that is shipped, by its name, or one's own, by its file.

    Raises:
      ValueError: there is no such suite, or its file is of another form; the message says where.
    """
    if name in suite_names():
        return _suite(name, (TABLES / f"{name}.toml").read_text(), f"suite {name}", folder=None)
    path = Path(name).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(name, suite_names(), n=1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise ValueError(
            f"--suite {name} is neither one of {', '.join(suite_names())} nor a file{hint}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        return _suite(path.stem, text, str(path), folder=path.parent)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


@functools.cache
def catalogue() -> dict[str, dict[str, Any]]:
    """The fields of every task that is known by its name."""
    return tomllib.loads((TABLES / "tasks.toml").read_text())


def _suite(name: str, text: str, where: str, folder: Path | None) -> Suite:
    table = tomllib.loads(text)
    if unknown := table.keys() - {"tasks", "averages"}:
        raise ValueError(
            f"{where} has {', '.join(sorted(unknown))}: a suite has tasks and averages"
        )
    entries = table.get("tasks")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where} has no tasks: write tasks = [{{ name = ... }}, ...]")
    tasks = tuple(_task(entry, where, folder) for entry in entries)
    known = [task.name for task in tasks]
    if twice := {each for each in known if known.count(each) > 1}:
        raise ValueError(f"{where} has the task {', '.join(sorted(twice))} twice")
    averages = {}
    for title, members in table.get("averages", {}).items():
        members = known if members == "all" else members
        if not isinstance(members, list) or not members or set(members) - set(known):
            odd = sorted(set(members) - set(known)) if isinstance(members, list) else members
            raise ValueError(
                f'{where}: the average {title!r} must be "all" or a list of the suite\'s tasks; it '
                f"has {odd}"
            )
        averages[title] = tuple(members)
    return Suite(name=name, tasks=tasks, averages=averages)


def _nearest(name: str) -> str | None:
    """The task whose name, or other name, or title is the nearest; None where none is near."""
    name_of = {}
    for known, fields in catalogue().items():
        others = (known, known.rpartition("/")[2], fields["title"].lower(), *fields.get("also", ()))
        name_of |= {other: known for other in reversed(others) if other not in name_of}
    near = difflib.get_close_matches(name.lower(), name_of, n=1)
    return name_of[near[0]] if near else None


def _task(entry: Any, where: str, folder: Path | None) -> Task:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{where}: a task is {{ name = ..., ... }}, not {entry!r}")
    name = entry["name"]
    if name not in catalogue() and "source" not in entry:
        near = _nearest(name)
        hint = f"; the nearest is {near!r}" if near else ""
        raise ValueError(
            f"{where}: the task {name!r} is not known{hint}. One of your own has a source, such as "
            f'source = "folder:/data/{name}"'
        )
    fields = {"kind": "classification", "title": name} | catalogue().get(name, {}) | entry
    if unknown := fields.keys() - {field.name for field in dataclasses.fields(Task)}:
        raise ValueError(
            f"{where}: the task {name!r} has {', '.join(sorted(unknown))}, unknown here"
        )
    if fields["kind"] not in KINDS:
        raise ValueError(f"{where}: the kind of {name!r} must be one of {', '.join(KINDS)}")
    kind = KINDS[fields["kind"]]
    fields = {"main": kind.main} | fields
    fields["also"] = tuple(fields.get("also", ()))
    known = [metric for each in kind.metrics for metric in EVALUATORS[each].metrics]
    if not any(fnmatch.fnmatchcase(fields["main"], metric) for metric in known):
        near = difflib.get_close_matches(fields["main"], known, n=1, cutoff=0)
        raise ValueError(
            f"{where}: main = {fields['main']!r} of {name!r} is not measured on a task of kind "
            f"{fields['kind']}; the nearest is {near[0]!r}"
        )
    for file in ("classnames", "templates"):  # paths start where the suite's file is
        if fields.get(file) and folder is not None:
            fields[file] = str(folder / Path(fields[file]).expanduser())
    return Task(**fields)

"""What evaluations find, and the files of a run that keep it for the report."""

import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import re
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from clip_jax.storage import atomic_write

log = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
EVALUATION = "evaluation.json"
METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundImage:
    image: int  # index in the source
    score: float  # cosine
    right: bool  # the image has the query as one of its captions


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundCaption:
    caption: str
    score: float
    right: bool  # it is one of the image's captions


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionQuery:
    caption: str
    image: int  # index in the source of the image it belongs to
    group: str | None
    found: tuple[FoundImage, ...]  # the best first


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageQuery:
    image: int  # index in the source
    group: str | None
    found: tuple[FoundCaption, ...]  # distinct captions, the best first


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloseUp:
    """Some pairs and the cosine of each image with each caption."""

    images: tuple[int, ...]  # indices in the source
    captions: tuple[str, ...]
    cosines: tuple[tuple[float, ...], ...]  # a row for each caption, a column for each image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Retrievals and their pictures. They are drawn at random, the same ones each time."""

    caption_queries: tuple[CaptionQuery, ...]
    image_queries: tuple[ImageQuery, ...]
    close_up: CloseUp
    pictures: dict[int, str]  # data URI of each image that is named, by its index

    @classmethod
    def from_json(cls, data: dict) -> "Examples":
        """What `dataclasses.asdict` and JSON have made of examples, as examples again."""

        def queries(kind, found, entries):
            return tuple(
                kind(**entry | {"found": tuple(found(**answer) for answer in entry["found"])})
                for entry in entries
            )

        close_up = data["close_up"]
        return cls(
            caption_queries=queries(CaptionQuery, FoundImage, data["caption_queries"]),
            image_queries=queries(ImageQuery, FoundCaption, data["image_queries"]),
            close_up=CloseUp(
                images=tuple(close_up["images"]),
                captions=tuple(close_up["captions"]),
                cosines=tuple(tuple(row) for row in close_up["cosines"]),
            ),
            pictures={int(index): uri for index, uri in data["pictures"].items()},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassResult:
    """How one class fared in zero-shot classification."""

    name: str
    group: str | None  # such as "held_out"; None: in no group or in several
    images: int
    accuracy: float  # top-1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation found."""

    metrics: dict[str, float]  # "eval/loss", "eval/zero_shot_top1", ...
    classes: tuple[ClassResult, ...] = ()  # empty without zero-shot classification
    examples: Examples | None = None  # of retrieval, in process 0; None in the others


def save_snapshot(run_directory: str | os.PathLike, step: int, similarity_NN: np.ndarray):
    """Keep the cosines of a fixed batch's images (rows) and texts (columns) as they are at `step`.

    One process calls this. A reader never sees half a file; the same step twice keeps the latter.
    """
    similarity_NN = np.asarray(similarity_NN, np.float32)
    assert similarity_NN.ndim == 2 and similarity_NN.shape[0] == similarity_NN.shape[1]
    buffer = io.BytesIO()
    np.savez(buffer, similarity=similarity_NN)
    atomic_write(epath.Path(run_directory) / SNAPSHOTS / f"{step:09d}.npz", buffer.getvalue())


def load_snapshots(run_directory: str | os.PathLike) -> dict[int, np.ndarray]:
    """Snapshots by step, rising. Damaged files are skipped: a report does not depend on them."""
    folder = epath.Path(run_directory) / SNAPSHOTS
    snapshots = {}
    for file in sorted(folder.iterdir()) if folder.exists() else ():
        if not re.fullmatch(r"\d+\.npz", file.name):
            continue
        try:
            with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
                snapshots[int(file.stem)] = arrays["similarity"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
    return snapshots


def save_evaluation(run_directory: str | os.PathLike, step: int, evaluation: Evaluation):
    """Keep the latest evaluation, with its pictures, for the report. One process calls this."""
    text = json.dumps({"step": step, **dataclasses.asdict(evaluation)})
    atomic_write(epath.Path(run_directory) / EVALUATION, text)


def load_evaluation(run_directory: str | os.PathLike) -> tuple[int, Evaluation] | None:
    """The step and what was found at it; None where there is none, or only half of one."""
    try:
        data = json.loads((epath.Path(run_directory) / EVALUATION).read_text())
        examples = data["examples"] and Examples.from_json(data["examples"])
        classes = tuple(ClassResult(**entry) for entry in data["classes"])
        return data["step"], Evaluation(metrics=data["metrics"], classes=classes, examples=examples)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def dump_json(content: Any, **options) -> str:
    """JSON that every reader takes: a number that is not finite becomes null."""
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_metric_lines(run_directory: str | os.PathLike) -> list[dict]:
    """The lines of metrics.jsonl; see `parse_metric_lines`. Empty where there is no file."""
    file = epath.Path(run_directory) / METRICS
    # A log that was spoilt by hand, or by a disk, never keeps a run from resuming.
    try:
        data = file.read_bytes() if file.exists() else b""
    except OSError as error:
        log.warning("%s cannot be read: %s", file, error)
        data = b""
    return parse_metric_lines(data.decode(errors="replace").splitlines())


def parse_metric_lines(lines: Iterable[str]) -> list[dict]:
    """The lines that are metrics of a step. Others, such as one that a kill cut off, are skipped."""
    parsed = []
    for line in lines:
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                parsed.append(values)
    return parsed


def read_metrics(run_directory: str | os.PathLike) -> dict[int, dict[str, float]]:
    """metrics.jsonl as finite numbers by step, rising.

    Incomplete lines are skipped. Where a resumed run wrote a step again, the later line counts.
    """
    steps: dict[int, dict[str, float]] = {}
    for entry in read_metric_lines(run_directory):
        # Training and evaluation write a line each; a later one must not hide the other's numbers.
        kept = steps.setdefault(entry["step"], {})
        for name, value in entry.items():
            if name != "step":
                kept.pop(name, None)
                if isinstance(value, int | float) and math.isfinite(value):
                    kept[name] = float(value)
    return dict(sorted(steps.items()))

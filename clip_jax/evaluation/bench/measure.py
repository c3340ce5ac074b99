"""One model on one task: embed what the cache does not have, then every evaluator of its kind."""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_jax.config import DataConfig, EvaluationConfig, LossConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import eval_batches
from clip_jax.data.samples import BadSample, Sample
from clip_jax.distributed.multihost import allgather_json
from clip_jax.evaluation.annotations import Annotation, read_annotations
from clip_jax.evaluation.bench.cache import Cache, Part, fingerprint
from clip_jax.evaluation.bench.layouts import Named
from clip_jax.evaluation.bench.tar_set import WRONG
from clip_jax.evaluation.bench.tasks import Task
from clip_jax.evaluation.encode import Encoder, check_finite
from clip_jax.evaluation.evaluator import Embedded, labelled_images
from clip_jax.evaluation.evaluators import EVALUATORS
from clip_jax.evaluation.examples import pictures
from clip_jax.evaluation.prompts import prompts_of
from clip_jax.models.clip import CLIP

VERSION = 2  # of what results hold: one of another version is measured again
CONFUSIONS, SHOWN, SIDE = 12, 4, 96  # pairs of classes, images of each, pixels


class Subject(NamedTuple):
    """A model that is measured."""

    name: str  # in the table
    model: CLIP
    tokenizer: Any
    encoder: Encoder
    cache: Cache
    fingerprint: str


class _Rows:
    """Some samples of a source in a row."""

    def __init__(self, source: Named, rows: Sequence[int]):
        self._source, self._rows = source, rows
        self.name, self.fingerprint = source.name, source.fingerprint
        self.classes, self.templates = source.classes, source.templates
        self.notes, self.lost = source.notes, 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        try:
            return self._source[row]
        except BadSample:
            raise
        except Exception as error:
            # Tables and their images are read by libraries that raise what they like at wrong bytes:
            # it is a bad sample, which is counted, and no reason to leave the other tasks out.
            reason = f"unreadable-{type(error).__name__}"
            raise BadSample(reason, key=f"row {row}", shard=self.name) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept(Embedded):
    """A data set whose texts are embedded once for a model, also over several starts."""

    subject: Subject

    @functools.cached_property
    def z_class_SE(self) -> np.ndarray:
        prompts = [prompts_of(name, self.templates) for name in self.classes or ()]
        return self._keep("classes", prompts, Embedded.z_class_SE.func)

    @functools.cached_property
    def z_text_ME(self) -> np.ndarray:
        return self._keep("captions", self.captions, Embedded.z_text_ME.func)

    def _keep(self, what: str, texts: object, make) -> np.ndarray:
        name = f"{what}-{fingerprint(texts, facts_of(self.tokenizer))}"
        z_NE = self.subject.cache.array(name, lambda: make(self))
        check_finite(z_NE, f"{what} of {self.source.name}")
        return z_NE


def facts_of(tokenizer: Any) -> object:
    """What tells tokenizers apart that a model may be given."""
    name, content = tokenizer.file()
    digest = fingerprint(name, content)
    return tokenizer.kind, tokenizer.context_length, tokenizer.vocab_size, digest


def measure(
    subject: Subject,
    task: Task,
    source: Named,
    *,
    cfg: EvaluationConfig,
    data: DataConfig,
    save_every: int,
    train: Named | None = None,
    probes: Sequence[str] = (),
) -> dict[str, Any]:
    """What all evaluators of the task's kind find, as plain data; kept, and taken from what is kept.

    Args:
      subject: the model.
      task, source: what `open_task` has opened.
      cfg: batch size and `max_samples`.
      data: how images are read, and how many may be unreadable.
      save_every: images that are embedded between two savings.
      train: the training split; None: there is none, and no probe.
      probes: further evaluators, of the training split.

    Raises:
      ValueError: samples do not fit the task, or too many cannot be read.
    """
    prompts = [prompts_of(name, source.templates or ()) for name in source.classes or ()]
    facts = (VERSION, subject.fingerprint, facts_of(subject.tokenizer), source.fingerprint)
    facts += (
        len(source),
        dataclasses.replace(task, title="", size=None),
        prompts,
        cfg.max_samples,
    )
    probes = tuple(probes) if train is not None else ()
    facts += (probes, train and (train.fingerprint, len(train)))
    facts += (data.max_image_pixels, data.exif_rotation, data.max_bad_share, data.group_rows)
    key = f"result-{fingerprint(*facts)}"
    kept = subject.cache.result(key)
    if kept is not None:
        return kept | {"model": subject.name}
    start = time.monotonic()
    settings = {"cfg": cfg, "data": data, "save_every": save_every}
    z_NE, annotations = embed_images(subject, task, source, **settings)
    classes = source.classes
    if task.subset and classes is not None and len(classes) != task.classes:
        classes, annotations = _occurring(task, source, annotations, whole=cfg.max_samples is None)
    embedded = Kept(
        source=source, annotations=annotations, z_image_NE=z_NE, encoder=subject.encoder,
        tokenizer=subject.tokenizer, tokenize_captions=subject.tokenizer, classes=classes,
        templates=source.templates or (), cfg=cfg, data=data, loss=LossConfig(), should_stop=None,
        subject=subject,
        train=None if train is None else lambda: labelled_images(*embed_images(subject, task, train, **settings)),
    )  # fmt: skip
    metrics, by_class = {}, ()
    for name in (*task.evaluators, *probes):
        evaluator = EVALUATORS[name]
        if all(embedded.has(need) for need in evaluator.needs):
            found = evaluator.measure(embedded)
            metrics |= found.metrics
            by_class = found.classes or by_class
    if task.main not in metrics:
        raise ValueError(f"{source.name} has nothing to measure {task.main} on")
    result = {
        "task": task.name, "title": task.title, "kind": task.kind, "main": task.main,
        "value": metrics[task.main], "metrics": metrics, "samples": len(annotations),
        "size": len(source), "expected": task.size,
        "source": source.name, "classes": [dataclasses.asdict(each) for each in by_class],
        "seconds": round(time.monotonic() - start, 2),
    }  # fmt: skip
    if task.kind == "classification":
        _ = embedded.predicted_N  # in every process, since all devices take part
    result |= _confusions(embedded, task, data) if jax.process_index() == 0 else {}
    subject.cache.keep_result(key, result)
    return allgather_json(result)[0] | {"model": subject.name}


def embed_images(
    subject: Subject, task: Task, source: Named, *, cfg, data: DataConfig, save_every: int
):
    """The embeddings of all usable images, and what is known of these images."""
    count = min(len(source), cfg.max_samples or len(source))
    rows = [place * len(source) // count for place in range(count)]
    size = max(1, save_every // cfg.batch_size) * cfg.batch_size
    facts = (source.fingerprint, len(source), count, size, task.kind, task.group, task.derive)
    facts += (task.captions, len(source.classes or ()), data.max_image_pixels, data.exif_rotation)
    name = f"images-{fingerprint(*facts, Annotation._fields)}"
    parts = []
    for number, first in enumerate(range(0, count, size)):
        make = functools.partial(_part, subject, source, rows[first : first + size], cfg, data)
        parts.append(subject.cache.part(name, number, make))
    bad = [entry for part in parts for entry in part.bad]
    usable = sum(len(part.annotations) for part in parts)
    wrong = next(((key, reason) for key, reason in bad if reason.startswith(WRONG)), None)
    if wrong is not None:
        raise ValueError(f"{wrong[0]} does not fit the task: {wrong[1].removeprefix(WRONG)}")
    if count - usable > data.max_bad_share * count or not usable:
        first = "; ".join(f"{key}: {reason}" for key, reason in bad[:5])
        raise ValueError(
            f"{source.name}: {count - usable} of {count} samples cannot be used, more than "
            f"data.max_bad_share={data.max_bad_share} allows. The first ones: {first}"
        )
    z_NE = np.concatenate([part.z_NE for part in parts if len(part.annotations)])
    check_finite(z_NE, f"images of {source.name}")
    return z_NE, [annotation for part in parts for annotation in part.annotations]


def _part(subject: Subject, source: Named, rows: Sequence[int], cfg, data: DataConfig) -> Part:
    """Embed some samples. All processes do, each its share; none stops alone at a bad sample."""
    part, bad_samples = _Rows(source, rows), BadSamples()
    batches = eval_batches(
        part,
        subject.tokenizer,
        dataclasses.replace(data, max_bad_share=1.0),
        batch_size=cfg.batch_size,
        image_size=subject.model.config.vision.image_size,
        preprocess=subject.model.config.preprocess,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        bad_samples=bad_samples,
    )
    with batches:
        z_NE, index_N = subject.encoder.encode_images(batches)
    found = read_annotations(part, index_N.tolist()) if len(index_N) else []
    annotations = [each._replace(index=int(rows[each.index])) for each in found]
    bad = [tuple(entry) for each in allgather_json(bad_samples.first) for entry in each]
    return Part(z_NE, annotations, bad)


def _occurring(task: Task, source: Named, annotations: list[Annotation], *, whole: bool):
    """The classes that occur, with labels that count them alone: of ImageNet-A and -R, 200 of 1000."""
    labels = sorted({each.label for each in annotations if each.label is not None})
    if whole and len(labels) != task.classes:
        raise ValueError(
            f"{source.name} has images of {len(labels)} classes; the task has {task.classes}"
        )
    place_of = {label: place for place, label in enumerate(labels)}
    renamed = [each._replace(label=place_of.get(each.label)) for each in annotations]
    return tuple((source.classes or ())[label] for label in labels), renamed


def _confusions(embedded: Embedded, task: Task, data: DataConfig) -> dict[str, Any]:
    """The pairs of classes that are taken for each other most often, with some of the images."""
    if task.kind != "classification" or embedded.classes is None:
        return {}
    label_N, predicted_N = embedded.label_N, embedded.predicted_N
    wrong = np.flatnonzero(label_N != predicted_N)
    pairs = Counter(zip(label_N[wrong].tolist(), predicted_N[wrong].tolist()))
    images_S = np.bincount(label_N)
    found, shown = [], []
    for (label, other), count in pairs.most_common(CONFUSIONS):
        own = wrong[(label_N[wrong] == label) & (predicted_N[wrong] == other)][:SHOWN]
        indices = [embedded.annotations[embedded.labelled[n]].index for n in own]
        shown += indices
        found.append({
            "right": embedded.classes[label], "taken_for": embedded.classes[other],
            "count": count, "images": int(images_S[label]), "shown": indices,
        })  # fmt: skip
    small = pictures(embedded.source, sorted(set(shown)), data.max_image_pixels, side=SIDE)
    return {"confusions": found, "pictures": {str(index): uri for index, uri in small.items()}}

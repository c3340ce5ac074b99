"""All that is measured of a model: every evaluator of `evaluation.metrics` on every data set."""

import dataclasses
import difflib
import fnmatch
import functools
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.config import DataConfig, EvaluationConfig, LossConfig, TrainConfig
from clip_jax.data.loader import EqualBatches, eval_batches
from clip_jax.data.samples import Source
from clip_jax.data.sources import registry
from clip_jax.data.sources.labels import check_order
from clip_jax.distributed.multihost import raise_together
from clip_jax.evaluation.annotations import Annotation, read_annotations
from clip_jax.evaluation.encode import Encoder, Stopped
from clip_jax.evaluation.evaluator import (
    Embedded,
    Evaluator,
    Labelled,
    Tokenize,
    labelled_images,
)
from clip_jax.evaluation.evaluators import EVALUATORS
from clip_jax.evaluation.prompts import (
    SIMPLE_TEMPLATES,
    Templates,
    check_prompts,
    prompts_of,
    read_classes,
    read_templates,
)
from clip_jax.models.clip import CLIP
from clip_jax.registry import resolve
from clip_jax.runs.results import Evaluation
from clip_jax.runs.retention import Better

log = logging.getLogger(__name__)

ShouldStop = Callable[[], bool] | None


class Evaluators:
    """Measures a model as often as it is called, each time with other variables.

    Captions are read and tokenized, and programs compiled, the first time alone.

    Args:
      first: the data set whose metrics are eval/..., and which gives the report. Its classes and
        templates may be files that `cfg` names.
      others: more data sets by name, with their own classes and templates. Their metrics are
        eval/NAME/...
      model: its preprocessing and image size are used.
      mesh: all of its devices take part.
      tokenizer: the model's.
      cfg: what is measured.
      data: how images are read.
      loss: that the model was trained with.

    Raises:
      ValueError: there is no such evaluator, the batch does not divide over the devices, or a file
        of classes or templates cannot be used. It is raised here, before the hours of training.
      FileNotFoundError: such a file is not there.
    """

    def __init__(
        self,
        first: Source,
        others: dict[str, Source],
        model: CLIP,
        mesh: Mesh,
        tokenizer: Tokenize,
        *,
        cfg: EvaluationConfig,
        data: DataConfig,
        loss: LossConfig,
    ):
        def measured(source: Source, cfg: EvaluationConfig) -> "_DataSet":
            return _DataSet(source, model, mesh, tokenizer, cfg=cfg, data=data, loss=loss)

        # The training set is the first's, so that the others have no probes.
        named = named_evaluators(cfg).items()
        metrics = tuple(name for name, evaluator in named if "train" not in evaluator.needs)
        own = {"classes": None, "templates": None, "probe_source": None, "metrics": metrics}
        own = dataclasses.replace(cfg, **own)
        self._sets = {"": measured(first, cfg)}
        self._sets |= {f"{name}/": measured(source, own) for name, source in others.items()}

    def __call__(self, variables: Any, *, should_stop: ShouldStop = None) -> Evaluation | None:
        """Measure the model with these variables.

        Args:
          variables: of the model, as `model.apply` takes them, wherever they are.
          should_stop: asked between batches, equally often in every process.

        Returns:
          The result, or None if `should_stop` ended it.

        Raises:
          ValueError: no sample can be used, or labels and classes do not fit.
        """
        try:
            results = {name: each.measure(variables, should_stop) for name, each in self._sets.items()}  # fmt: skip
        except Stopped:
            return None
        metrics = {
            f"eval/{name}{metric}": value
            for name, result in results.items()
            for metric, value in result.metrics.items()
        }
        return dataclasses.replace(results[""], metrics=metrics)

    def facts(self) -> dict[str, object]:
        """What must be equal in all processes: the test data, their classes and prompts."""
        return {
            f"{name}{what}": value
            for name, one in self._sets.items()
            for what, value in one.facts().items()
        }


def _classes_of(source: Source, cfg: EvaluationConfig) -> tuple[str, ...] | None:
    """The names of the classes that a setting says, or else the source's own."""
    if not cfg.classes:
        return source.classes
    names, folders = read_classes(cfg.classes), getattr(source, "folders", None)
    if folders is not None:
        check_order(names, folders, f"evaluation.classes={cfg.classes}")
    return names


class _DataSet:
    """One data set, with what is known of it from one evaluation to the next."""

    def __init__(
        self,
        source: Source,
        model: CLIP,
        mesh: Mesh,
        tokenizer: Tokenize,
        *,
        cfg: EvaluationConfig,
        data: DataConfig,
        loss: LossConfig,
    ):
        sharding.check_batch("evaluation.batch_size", cfg.batch_size, mesh)
        self._source, self._model, self._mesh, self._tokenizer = source, model, mesh, tokenizer
        self._cfg, self._data, self._loss = cfg, data, loss
        self._evaluators = named_evaluators(cfg)
        self._classes = _classes_of(source, cfg)
        self._templates: Templates = source.templates or SIMPLE_TEMPLATES
        if cfg.templates:
            self._templates = read_templates(cfg.templates)
            check_prompts(self._classes or (), self._templates, cfg.templates)
        self._images = _Images(source, model, tokenizer, cfg=cfg, data=data)
        self._train = None
        if cfg.probe_source is not None:
            # Another source than what is trained on, whose subset is of other samples.
            whole = dataclasses.replace(data, subset=())
            opened = registry.open_source(cfg.probe_source, "train", whole)
            own = dataclasses.replace(cfg, max_samples=cfg.probe_samples)
            self._train = _Images(opened, model, tokenizer, cfg=own, data=data)
        self._tokens: dict[str, np.ndarray] = {}  # of each caption

    def facts(self) -> dict[str, object]:
        classes = self._classes or ()
        prompts = (text for name in classes for text in prompts_of(name, self._templates))
        texts = "\n".join([*classes, "", *prompts])
        probe = {} if self._train is None else {"probe data": self._train.source.fingerprint}
        return probe | {
            "test data": self._source.fingerprint,
            "test samples": len(self._source),
            "classes and templates": hashlib.sha256(texts.encode()).hexdigest()[:16],
        }

    def measure(self, variables: Any, should_stop: ShouldStop) -> Evaluation:
        """What all evaluators find, without "eval/" in the names."""
        encoder = Encoder(self._model, variables, self._mesh, batch_size=self._cfg.batch_size)
        z_image_NE, annotations = self._images.embed(encoder, should_stop)
        train = None
        if self._train is not None:
            train = functools.partial(_labelled, self._train, encoder, should_stop)
        embedded = Embedded(
            source=self._source,
            annotations=annotations,
            z_image_NE=z_image_NE,
            encoder=encoder,
            tokenizer=self._tokenizer,
            tokenize_captions=self._tokenized,
            classes=self._classes,
            templates=self._templates,
            cfg=self._cfg,
            data=self._data,
            loss=self._loss,
            should_stop=should_stop,
            train=train,
        )
        metrics, classes, examples = {"samples": float(len(annotations))}, (), None
        for name, evaluator in self._evaluators.items():
            if missing := [need for need in evaluator.needs if not embedded.has(need)]:
                log.info("%s has no %s: no %s", self._source.name, " or ".join(missing), name)
                continue
            result = evaluator.measure(embedded)
            if twice := metrics.keys() & result.metrics.keys():
                raise ValueError(
                    f"evaluation.metrics={name} measures {', '.join(sorted(twice))}, which another "
                    "evaluator measures too: rename the metric or leave one of them out"
                )
            metrics |= result.metrics
            classes, examples = result.classes or classes, result.examples or examples
        return Evaluation(metrics=metrics, classes=classes, examples=examples)

    def _tokenized(self, captions: Sequence[str]) -> np.ndarray:
        """(captions, length) int32."""
        unknown = list(dict.fromkeys(text for text in captions if text not in self._tokens))
        if unknown:
            self._tokens |= zip(unknown, np.asarray(self._tokenizer(unknown), np.int32))
        return np.stack([self._tokens[text] for text in captions])


class _Images:
    """The images of a source, with what is known of them from one evaluation to the next."""

    def __init__(
        self,
        source: Source,
        model: CLIP,
        tokenizer: Tokenize,
        *,
        cfg: EvaluationConfig,
        data: DataConfig,
    ):
        self.source, self._model, self._tokenizer = source, model, tokenizer
        self._cfg, self._data = cfg, data
        self._known: dict[int, Annotation] = {}  # by index

    def embed(self, encoder: Encoder, should_stop: ShouldStop):
        """The embeddings of all usable images, and what is known of these images."""
        batches = eval_batches(
            self.source,
            self._tokenizer,
            self._data,
            batch_size=self._cfg.batch_size,
            image_size=self._model.config.vision.image_size,
            preprocess=self._model.config.preprocess,
            max_samples=self._cfg.max_samples,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with EqualBatches(batches, alone=jax.process_count() == 1) as equal:
            z_NE, index_N = encoder.encode_images(equal, should_stop=should_stop)
        raise_together(equal.error)
        if not len(index_N):
            raise ValueError(f"{self.source.name}: not one of its samples can be evaluated")
        # The same images are usable in every process, so all of them read, or none does.
        if unknown := [index for index in index_N.tolist() if index not in self._known]:
            read = read_annotations(self.source, unknown)
            self._known |= {annotation.index: annotation for annotation in read}
        return z_NE, [self._known[index] for index in index_N.tolist()]


def _labelled(images: _Images, encoder: Encoder, should_stop: ShouldStop) -> Labelled:
    return labelled_images(*images.embed(encoder, should_stop))


# ----------------------------------------------------------------------- what settings name


def named_evaluators(cfg: EvaluationConfig) -> dict[str, Evaluator]:
    """The records that `evaluation.metrics` names.

    Raises:
      ValueError: there is none of that name, what is named is no `Evaluator`, or a probe has no
        training set.
    """
    named = {name: resolve("evaluation.metrics", name, EVALUATORS) for name in cfg.metrics}
    for name, evaluator in named.items():
        if not isinstance(evaluator, Evaluator):
            kind = type(evaluator).__name__
            raise ValueError(f"evaluation.metrics={name!r} is {kind}, and must be an Evaluator")
        if "train" in evaluator.needs and cfg.probe_source is None:
            raise ValueError(
                f"evaluation.metrics={name!r} needs a training set: name one with "
                "evaluation.probe_source"
            )
    return named


def headlines(cfg: EvaluationConfig) -> tuple[str, ...]:
    """The ends of the metrics that are shown while training."""
    records = named_evaluators(cfg).values()
    return tuple(f"/{record.headline}" for record in records if record.headline)


def best_direction(cfg: TrainConfig) -> Better:
    """Which way `checkpoint.keep_best_by` is better; "higher" where it names nothing.

    Raises:
      ValueError: no evaluator of `evaluation.metrics` measures it; the nearest ones are given.
    """
    name = cfg.checkpoint.keep_best_by
    if name is None:
        return "higher"
    starts = ["eval/", *(f"eval/{entry.partition('=')[0]}/" for entry in cfg.data.eval_also)]
    known = {
        start + metric: better
        for start in starts
        for record in named_evaluators(cfg.evaluation).values()
        for metric, better in record.metrics.items()
    }
    for metric, better in known.items():
        fits = fnmatch.fnmatchcase(name, metric)
        if fits and name.count("/") == metric.count("/"):
            return better
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)[:3]
    raise ValueError(
        f"checkpoint.keep_best_by={name} is no metric of evaluation.metrics="
        f"{' '.join(cfg.evaluation.metrics)}; the nearest are {', '.join(near)}"
    )


def open_others(cfg: DataConfig) -> dict[str, Source]:
    """The data sets of `data.eval_also` by name.

    Raises:
      ValueError, FileNotFoundError: an entry that is not NAME=SOURCE, or whose data cannot be used.
    """
    opened = {}
    cfg = dataclasses.replace(cfg, subset=())  # which is of what is trained on
    for entry in cfg.eval_also:
        name, _, spec = entry.partition("=")
        if not re.fullmatch(r"[\w-]+", name) or not spec:
            raise ValueError(
                f"data.eval_also has {entry!r}: write NAME=SOURCE, such as imagenet=folder:DIR, with "
                'letters, digits and "_" as the name'
            )
        if name in opened:
            raise ValueError(f"data.eval_also names two data sets {name}: give each its own name")
        opened[name] = registry.open_source(spec, "test", cfg)
    return opened

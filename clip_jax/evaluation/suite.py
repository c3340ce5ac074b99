"""Several data sets measured as one: the first gives the report, the others figures beside its own."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from clip_jax.config import DataConfig, EvaluationConfig
from clip_jax.data.samples import Source
from clip_jax.data.sources import registry
from clip_jax.evaluation.evaluate import Evaluator, ShouldStop
from clip_jax.evaluation.results import Evaluation
from clip_jax.models.clip import CLIP


class Evaluators:
    """An `Evaluator` of each data set. The metrics of the others are `eval/NAME/...`.

    Args:
      first: the data set whose classes and templates `cfg` may tell.
      others: by name, with their own classes and templates.
    """

    def __init__(
        self,
        first: Source,
        others: dict[str, Source],
        model: CLIP,
        mesh: Mesh,
        tokenizer: Callable[[Sequence[str]], np.ndarray],
        *,
        cfg: EvaluationConfig,
        data: DataConfig,
    ):
        def evaluator(source: Source, cfg: EvaluationConfig) -> Evaluator:
            return Evaluator(model, mesh, source, tokenizer, cfg=cfg, data=data)

        own = dataclasses.replace(cfg, classes=None, templates=None)
        self._first = evaluator(first, cfg)
        self._others = {name: evaluator(source, own) for name, source in others.items()}

    def __call__(self, variables: Any, *, should_stop: ShouldStop = None) -> Evaluation | None:
        """As an `Evaluator` does, with the metrics of all."""
        evaluation = self._first(variables, should_stop=should_stop)
        if evaluation is None:
            return None
        metrics = dict(evaluation.metrics)
        for name, evaluator in self._others.items():
            found = evaluator(variables, should_stop=should_stop)
            if found is None:
                return None
            for metric, value in found.metrics.items():
                metrics[f"eval/{name}/{metric.removeprefix('eval/')}"] = value
        return dataclasses.replace(evaluation, metrics=metrics)


def open_others(cfg: DataConfig) -> dict[str, Source]:
    """The data sets of `data.eval_also` by name.

    Raises:
      ValueError, FileNotFoundError: an entry that is not NAME=SOURCE, or whose data cannot be used.
    """
    opened = {}
    for entry in cfg.eval_also:
        name, _, spec = entry.partition("=")
        # What `checkpoint.keep_best_by` finds "loss" in is better the lower it is.
        if not re.fullmatch(r"[\w-]+", name) or not spec or "loss" in name:
            raise ValueError(
                f"data.eval_also has {entry!r}: write NAME=SOURCE, such as imagenet=folder:DIR, with "
                'letters, digits and "_" as the name, and without "loss" in it'
            )
        if name in opened:
            raise ValueError(f"data.eval_also names two data sets {name}: give each its own name")
        opened[name] = registry.open_source(spec, "test", cfg)
    return opened

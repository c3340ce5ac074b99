"""The command `clip-jax eval`: what is measured of a model, a run's or released weights."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from clip_jax import sharding, storage
from clip_jax.cli.arguments import parse
from clip_jax.config import DataConfig, EvaluationConfig, MeshConfig, TrainConfig
from clip_jax.data.sources import registry
from clip_jax.evaluation.evaluators.loss import default_loss
from clip_jax.evaluation.suite import Evaluators, open_others
from clip_jax.load import Step, load_to_host
from clip_jax.runs.directory import RunDirectory

EVAL_HELP = """Measure a trained model: zero-shot accuracy and retrieval.

Settings of --data and --evaluation default to those of the run, such as:
clip-jax eval runs/mine --source folder:/imagenet/val --evaluation.templates templates.txt"""


@dataclass(frozen=True)
class EvalSettings:
    model: Annotated[str, tyro.conf.Positional]  # a run directory, or released weights
    source: str | None = None  # what to measure it on; default: the test data of the run
    step: Step = None  # which checkpoint of a run, its number or "best"; default: the newest
    json_out: Path | None = None  # a file that gets the figures too
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def evaluate(args: list[str]) -> int:
    """Measure a trained model: zero-shot accuracy and retrieval."""
    settings, loss = parse_eval(args), None
    run = RunDirectory(settings.model, main=False)
    if run.holds_run:  # its settings are the defaults
        cfg = run.load_config() or TrainConfig()
        data = cfg.data
        if settings.source is not None:  # the run's subsets are of the run's sources
            data = replace(data, subset=(), eval_subset=None)
        settings, loss = parse_eval(args, data=data, evaluation=cfg.evaluation), cfg.loss
    elif settings.source is None and settings.data.eval_source is None:
        raise ValueError(
            f"{settings.model} is no run directory: name what to measure on with --source"
        )
    data = settings.data
    if settings.source is not None:
        data = replace(
            data,
            source=(settings.source,),
            eval_source=settings.source,
            eval_also=(),
            eval_subset=_subset(data),
        )
    loaded = load_to_host(settings.model, step=settings.step)
    first = registry.open_eval_source(data)
    if first is None:
        raise ValueError("the run has no test data: name what to measure on with --source")
    if loaded.tokenizer is None:
        raise ValueError(f"no tokenizer lies with {settings.model}: put its file there")
    measure = Evaluators(
        first,
        open_others(data),
        loaded.model,
        sharding.make_mesh(settings.mesh),
        loaded.tokenizer,
        cfg=settings.evaluation,
        data=data,
        loss=loss or default_loss(loaded.model.config),
    )
    result = measure(loaded.variables)
    assert result is not None
    for name, value in result.metrics.items():
        print(f"{name.removeprefix('eval/'):40} {value:.6g}")
    if settings.json_out is not None:
        storage.atomic_write(settings.json_out, json.dumps(result.metrics, indent=2) + "\n")
    return 0


def _subset(data: DataConfig) -> str | None:
    """The subset of --source, for which both settings are meant."""
    named = {*data.subset, *filter(None, [data.eval_subset])}
    if len(named) > 1:
        raise ValueError(f"--source has one subset, and {', '.join(sorted(named))} are named")
    return next(iter(named), None)


def parse_eval(args: list[str], **defaults) -> EvalSettings:
    """The settings that `args` give; the others are the defaults."""
    default = EvalSettings(model=tyro.MISSING, **defaults)
    return parse(EvalSettings, args, default=default, prog="clip-jax eval", description=EVAL_HELP)

"""The command `clip-jax average`: soups, interpolation and its curve, the mean of saved steps."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from clip_jax import sharding
from clip_jax.cli.arguments import parse
from clip_jax.config import DataConfig, EvaluationConfig, MeshConfig
from clip_jax.evaluation.bench import forms
from clip_jax.evaluation.bench.report import Report
from clip_jax.evaluation.bench.run import BenchConfig, run
from clip_jax.evaluation.bench.tasks import read_suite
from clip_jax.load import load_to_host
from clip_jax.runs.directory import RunDirectory, can_hold_runs
from clip_jax.weights.average import average_models, greedy_soup, refuse_run, write_run
from clip_jax.weights.export import export
from clip_jax.weights.load import Loaded

AVERAGE_HELP = """Average models in the space of their weights and write the result.

clip-jax average zero_shot.pt runs/tuned --weights 0.5 0.5 --out runs/wise       (WiSE-FT)
clip-jax average runs/a runs/b runs/c --out runs/soup                            (uniform soup)
clip-jax average runs/a runs/b runs/c --greedy --suite mine.toml --out runs/soup (greedy soup)
clip-jax average runs/a --steps 800 900 1000 --out runs/mean                     (saved steps)
clip-jax average zero_shot.pt runs/tuned --curve 11 --suite robustness --out curve"""


@dataclass(frozen=True)
class AverageSettings:
    models: Annotated[tuple[str, ...], tyro.conf.Positional]  # runs or released weights
    out: str = tyro.MISSING  # a new directory
    weights: tuple[float, ...] = ()  # of the models, adding to 1; left out, all alike
    steps: tuple[int, ...] = ()  # of the one run that is named: these checkpoints are averaged
    greedy: bool = False  # keep the models that make the soup better on --suite
    curve: int | None = None  # points between two models that are measured on --suite
    to: Literal["run", "huggingface", "open_clip"] = "run"  # what is written
    suite: str = "imagenet"  # what --greedy and --curve measure
    root: tuple[str, ...] = ("data/bench",)  # folders with the data of tasks
    batch_size: int = 256  # images, over all devices
    max_samples: int | None = None  # of each task; None: all
    data: DataConfig = field(default_factory=DataConfig)  # how images are read
    mesh: MeshConfig = field(default_factory=MeshConfig)


def average_command(args: list[str]) -> int:
    """Average models: WiSE-FT and its curve, uniform and greedy soups, saved steps."""
    default = AverageSettings(models=tyro.MISSING)
    settings = parse(
        AverageSettings, args, default=default, prog="clip-jax average", description=AVERAGE_HELP
    )
    loads = sources(settings)
    if settings.curve is not None:
        return curve(settings, loads)
    kept = list(range(len(loads)))
    if settings.greedy:
        kept = greedy(settings, loads)
        print("kept:", ", ".join(settings.models[place] for place in kept))
    weights = settings.weights or (1 / len(kept),) * len(kept)
    result = average_models([loads[place] for place in kept], weights)
    write(settings, result)
    print(settings.out)
    return 0


def sources(settings: AverageSettings) -> list[Callable[[], Loaded]]:
    """What loads each model that is averaged.

    Raises:
      ValueError: settings that do not fit each other.
    """
    models, steps = settings.models, settings.steps
    if steps and len(models) != 1:
        raise ValueError(f"--steps are of one run, and {len(models)} models are named")
    loads = [functools.partial(load_to_host, models[0], step=step) for step in steps]
    loads = loads or [functools.partial(load_to_host, path) for path in models]
    if len(loads) < 2:
        raise ValueError("name two models or more, or --steps of a run")
    if settings.weights and (settings.greedy or settings.curve is not None):
        raise ValueError("--weights has no effect with --greedy or --curve: leave it out")
    if settings.weights and len(settings.weights) != len(loads):
        raise ValueError(f"--weights has {len(settings.weights)} numbers for {len(loads)} models")
    if settings.curve is not None and (len(loads) != 2 or settings.curve < 2):
        raise ValueError("--curve is of two models, and has two points or more")
    if settings.to == "run":
        refuse_run(settings.out)  # now, and not when a greedy soup has been measured
    return loads


def measured(settings: AverageSettings, models: dict[str, Callable[[], Loaded]]) -> Report:
    """The models on the suite.

    Raises:
      ValueError: a task has no data or failed: models would be compared by different tasks.
    """
    config = BenchConfig(
        roots=settings.root,
        out=f"{settings.out}/bench" if settings.curve is None else settings.out,
        cfg=EvaluationConfig(batch_size=settings.batch_size, max_samples=settings.max_samples),
        data=settings.data,
    )
    mesh = sharding.make_mesh(settings.mesh)
    report = run(models, read_suite(settings.suite), mesh, config, say=print)
    if settings.curve is None and (report.missing or report.failed):
        names = list(dict.fromkeys([*report.missing, *(name for _, name in report.failed)]))
        raise ValueError(f"--greedy needs all tasks of {settings.suite}; not measured: {names}")
    return report


def greedy(settings: AverageSettings, loads: Sequence[Callable[[], Loaded]]) -> list[int]:
    """Places of the models that a greedy soup keeps."""

    def scores(models: dict[str, Callable[[], Loaded]]) -> list[float]:
        report = measured(settings, models)
        by_model = [[found["value"] for (m, _), found in report.results.items() if m == name]
                    for name in models]  # fmt: skip
        return [sum(values) / len(values) for values in by_model]

    def score_of(places: list[int]) -> float:
        name = "+".join(map(str, places))
        weights = (1 / len(places),) * len(places)
        (score,) = scores(
            {name: lambda: average_models([loads[place] for place in places], weights)}
        )
        return score

    alone = scores({str(place): load for place, load in enumerate(loads)})
    return greedy_soup(alone, score_of)


def curve(settings: AverageSettings, loads: Sequence[Callable[[], Loaded]]) -> int:
    """Measure the models on the line between two: a column for each share of the second."""
    assert settings.curve is not None
    shares = [place / (settings.curve - 1) for place in range(settings.curve)]
    models = {
        f"{share:.3g}": functools.partial(average_models, loads, (1 - share, share))
        for share in shares
    }
    report = measured(settings, models)
    print(
        f"\nThe share of {settings.models[1]}:\n{forms.text(report)}\n\n{settings.out}/bench.html"
    )
    return 1 if report.failed or not report.results else 0


def write(settings: AverageSettings, result: Loaded):
    """Write the average as a run, or for another library."""
    config = result.model.config
    if settings.to != "run":
        export(settings.out, config, result.variables, to=settings.to, tokenizer=result.tokenizer)
        return
    cfg, first = None, settings.models[0]
    if can_hold_runs(first) and RunDirectory(first, main=False).holds_run:
        cfg = RunDirectory(first, main=False).load_config()
    write_run(settings.out, config, result.variables, tokenizer=result.tokenizer, settings=cfg)

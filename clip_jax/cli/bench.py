"""The command `clip-jax bench`: models on a suite of tasks, in one table."""

import functools
from dataclasses import dataclass, field
from typing import Annotated, Literal

import jax
import tyro

from clip_jax import sharding
from clip_jax.cli.arguments import parse
from clip_jax.config import DataConfig, DistributedConfig, EvaluationConfig, MeshConfig
from clip_jax.distributed.failures import together
from clip_jax.evaluation.bench import forms
from clip_jax.evaluation.bench.run import BenchConfig, data_of, run
from clip_jax.evaluation.bench.tasks import read_suite
from clip_jax.load import check_there, load_to_host

Probe = Literal["knn", "few_shot", "linear_probe"]
BENCH_HELP = """Measure models on a suite of tasks and make one table of them.

The data of a task lie in a folder of --root, as CLIP_benchmark's tars (wds/NAME/test/0.tar, or wds_NAME
as Hugging Face's hub has them) or prepared by tensorflow_datasets. What is missing is listed, with where
it comes from. A bench that was cut off goes on when the same command is given again. docs/evaluate.md
says more. Suites: datacomp38, vtab, robustness, retrieval, clip_benchmark, choice, imagenet, or a file.

clip-jax bench runs/mine b32=laion/b32.safetensors --suite vtab --root /data/eval"""


@dataclass(frozen=True)
class BenchSettings:
    models: Annotated[
        tuple[str, ...], tyro.conf.Positional
    ] = ()  # runs or weights, PATH or NAME=PATH
    suite: str = "datacomp38"  # the name of a suite, or a file
    root: tuple[str, ...] = ("data/bench",)  # folders with the data of tasks
    out: str = "bench"  # the folder of the results and of what a bench goes on from
    probes: tuple[Probe, ...] = ()  # measured too, where a task has a training split
    list: bool = False  # say where the data of each task are, and measure nothing
    save_every: int = 8192  # images that are embedded between two savings
    batch_size: int = 256  # images, over all devices
    max_samples: int | None = None  # of each task, at even distances; None: all
    data: DataConfig = field(default_factory=DataConfig)  # how images are read
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def bench(args: list[str]) -> int:
    """Measure models on a suite of tasks (ImageNet, VTAB, DataComp's 38) in one table."""
    settings = parse(
        BenchSettings, args, default=BenchSettings(), prog="clip-jax bench", description=BENCH_HELP
    )
    suite = read_suite(settings.suite)
    if settings.data.subset or settings.data.eval_subset:
        raise ValueError("--data.subset has no effect on a suite: take --max-samples of each task")
    if settings.save_every < 1:
        raise ValueError(f"--save-every {settings.save_every} must be a whole number at least 1")
    if settings.list:
        for name, (state, where) in data_of(suite, settings.root, settings.data).items():
            print(f"{name:44} {state:8} {where}")
        return 0
    return measure(settings)


@together
def measure(settings: BenchSettings) -> int:
    """Measure what the settings say, on all processes of the job."""
    suite = read_suite(settings.suite)
    paths = named_models(settings.models)
    for path in paths.values():  # and not after hours, when its turn comes
        check_there(path)
    models = {name: functools.partial(load_to_host, path) for name, path in paths.items()}
    cfg = EvaluationConfig(batch_size=settings.batch_size, max_samples=settings.max_samples)
    config = BenchConfig(
        roots=settings.root,
        out=settings.out,
        cfg=cfg,
        data=settings.data,
        save_every=settings.save_every,
        probes=settings.probes,
    )
    report = run(models, suite, sharding.make_mesh(settings.mesh), config, say=print)
    if jax.process_index() == 0:
        print(f"\n{forms.text(report)}\n\n{settings.out}/bench.html")
    return 1 if report.failed or not report.results else 0


def named_models(models: tuple[str, ...]) -> dict[str, str]:
    """Paths of models by the names that they have in the table.

    Raises:
      ValueError: two have the same name.
    """
    if not models:
        raise ValueError("name one model or more: a run directory, or released weights")
    found: dict[str, str] = {}
    for entry in models:
        name, equals, path = entry.partition("=")
        if not equals or "/" in name:
            name, path = entry.rstrip("/"), entry
        if name in found:
            raise ValueError(f"two models are named {name}: write NAME=PATH for one of them")
        found[name] = path
    return found

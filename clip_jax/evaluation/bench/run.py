"""A bench: every model on every task whose data are there; one that fails does not stop the others."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from clip_jax.config import DataConfig, EvaluationConfig
from clip_jax.distributed.multihost import allgather_json
from clip_jax.evaluation.bench import forms, page
from clip_jax.evaluation.bench.cache import Cache, model_fingerprint
from clip_jax.evaluation.bench.layouts import Missing, Named, open_task, open_train
from clip_jax.evaluation.bench.measure import Subject, measure
from clip_jax.evaluation.bench.report import Report
from clip_jax.evaluation.bench.tasks import Suite, Task
from clip_jax.evaluation.encode import Encoder
from clip_jax.redaction import redact
from clip_jax.weights.load import Loaded

EMBEDDINGS = "cache"  # the folder of what a bench that was cut off goes on from


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """How a bench is run, and where its data and its results lie."""

    roots: tuple[str, ...] = ("data/bench",)  # folders with the data of tasks
    out: str = "bench"  # results.csv, bench.html, ... and the cache
    cfg: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    save_every: int = 8192  # images that are embedded between two savings
    probes: tuple[str, ...] = ()  # knn, few_shot, linear_probe: where a task has a training split


def run(
    models: Mapping[str, Callable[[], Loaded]],
    suite: Suite,
    mesh: Mesh,
    bench: BenchConfig,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measure models on a suite, and write the results after every model.

    Args:
      models: by their names in the table; each is loaded when its turn comes.
      suite: the tasks.
      mesh: all of its devices take part.
      bench: see `BenchConfig`.
      say: called with a line for each task that is done, in process 0.

    Raises:
      ValueError: a model has no tokenizer, or the batch does not divide over the devices.
    """
    report = Report(suite, tuple(models), {}, {}, {})
    out = Path(bench.out)
    tell = say if jax.process_index() == 0 else (lambda line: None)
    for name, load in models.items():
        subject = _subject(name, load(), mesh, bench)
        for task in suite.tasks:
            try:
                source = _open(task, bench)
                found = measure(
                    subject,
                    task,
                    source,
                    cfg=bench.cfg,
                    data=bench.data,
                    save_every=bench.save_every,
                    train=_open_train(task, bench),
                    probes=bench.probes,
                )
            except Missing as missing:
                report.missing[task.name] = str(missing)
            except (ValueError, OSError) as error:
                line = " ".join(redact(str(error)).split())
                report.failed[name, task.name] = line
                tell(f"{name}  {task.title}: failed: {line}")
            else:
                report.results[name, task.name] = found
                tell(f"{name}  {task.title}: {found['main']} {found['value']:.4f}")
        if jax.process_index() == 0:
            write(out, report)
    return report


def write(out: Path, report: Report):
    """All files of a report: CSV, a page, and JSON as CLIP_benchmark and DataComp write it."""
    forms.write(out, report)
    page.write(out, report)


def _subject(name: str, loaded: Loaded, mesh: Mesh, bench: BenchConfig) -> Subject:
    if loaded.tokenizer is None:
        raise ValueError(f"no tokenizer lies with {name}: put its file there")
    digest = model_fingerprint(loaded.model.config, loaded.variables)
    return Subject(
        name=name,
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        encoder=Encoder(loaded.model, loaded.variables, mesh, batch_size=bench.cfg.batch_size),
        cache=Cache(Path(bench.out) / EMBEDDINGS / digest),
        fingerprint=digest,
    )


def _open(task: Task, bench: BenchConfig) -> Named:
    """The data of a task, if all processes have the same.

    Raises:
      Missing, ValueError: in every process, if in one of them.
    """
    source, own = None, {}
    try:
        source = open_task(task, [Path(root).expanduser() for root in bench.roots], bench.data)
        own["data"] = f"{source.fingerprint} {len(source)}"
    except Missing as missing:
        own["missing"] = str(missing)
    except (ValueError, OSError) as error:
        own["wrong"] = str(error)
    every = allgather_json(own)
    wrong = next((each["wrong"] for each in every if "wrong" in each), None)
    if wrong is not None:
        raise ValueError(wrong)
    if all("missing" in each for each in every):
        raise Missing(every[0]["missing"])
    if source is None or any(each != own for each in every):
        different = [place for place, each in enumerate(every) if each != every[0]]
        raise ValueError(f"processes {different} have other data of {task.name} than process 0")
    return source


def _open_train(task: Task, bench: BenchConfig) -> Named | None:
    """The training split of a task, if all processes have it and it is wanted."""
    if not bench.probes:
        return None
    train, wrong = None, None
    try:
        train = open_train(task, [Path(root).expanduser() for root in bench.roots], bench.data)
    except (ValueError, OSError) as error:
        wrong = str(error)
    every = allgather_json([train and train.fingerprint, wrong])
    if found := next((wrong for _, wrong in every if wrong), None):
        raise ValueError(found)
    if any(each != every[0] for each in every):
        raise ValueError(f"processes have different training data of {task.name}")
    return train


def data_of(suite: Suite, roots: Sequence[str], data: DataConfig) -> dict[str, tuple[str, str]]:
    """For each task: "there", "missing" or "failed", with where it lies, comes from, or what is wrong."""
    found = {}
    for task in suite.tasks:
        try:
            source = open_task(task, [Path(root).expanduser() for root in roots], data)
            found[task.name] = ("there", f"{source.name}, {len(source)} samples")
        except Missing as missing:
            found[task.name] = ("missing", str(missing))
        except (ValueError, OSError) as error:
            found[task.name] = ("failed", " ".join(str(error).split()))
    return found

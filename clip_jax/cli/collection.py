"""The commands on a collection: embed, classify."""

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro

from clip_jax import sharding, storage
from clip_jax.cli.arguments import parse
from clip_jax.config import DataConfig, DistributedConfig, MeshConfig, TrainConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.sources import registry
from clip_jax.data.sources.subset import ALL
from clip_jax.distributed import agreement, initialize
from clip_jax.distributed.failures import together
from clip_jax.evaluation.prompts import (
    SIMPLE_TEMPLATES,
    Templates,
    check_prompts,
    read_classes,
    read_templates,
)
from clip_jax.load import Step, best_of, load_to_host
from clip_jax.redaction import redact
from clip_jax.runs.console import tolerant_streams
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.trained_variables import list_steps

EMBED_HELP = """Embed images and texts of a source into .npy files with Parquet metadata.

The same command on the same folder resumes it. --data is as the run has it, such as:
clip-jax embed runs/mine images:/pictures embeddings --what images"""
IN_FILES = ("images", "pairs", "tar", "records", "parquet", "folder")
WAIT_S = 30 * 24 * 3600.0  # for the process that is the slowest


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    model: Annotated[str, tyro.conf.Positional]  # a run directory, or released weights
    source: Annotated[str, tyro.conf.Positional]  # such as "tar:/data/{00000..00999}.tar"
    out: Annotated[str, tyro.conf.Positional]  # a new folder, or one to resume
    what: Literal["images", "texts", "both"] = "both"  # the texts are the first captions
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # FAISS knows no bfloat16
    batch_size: int = 256  # samples, over the devices of one process
    part_size: int = 16_384  # samples of a part, at which an interrupted command resumes
    split: Literal["train", "test"] = "train"  # of a source that has both
    architecture: str | None = None  # where the weights do not tell it
    step: Step = None  # which checkpoint of a run, its number or "best"; left out, the newest
    progress: bool = True  # rate and time left: a live line, or a line now and then in a file
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)  # of the devices of one process
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def embed(args: list[str]) -> int:
    """Embed images and texts of a source into files."""

    def parsed(**defaults) -> EmbedSettings:
        names = dict.fromkeys(("model", "source", "out"), tyro.MISSING)
        default = EmbedSettings(**names, **defaults)
        return parse(
            EmbedSettings, args, default=default, prog="clip-jax embed", description=EMBED_HELP
        )

    return embed_into(parsed(data=data_of(parsed().model)))


def data_of(model: str) -> DataConfig:
    """The data settings of a run, as defaults; those of nobody for released weights.

    The run's subsets are of the run's sources, and are left out.
    """
    run = RunDirectory(model, main=False)
    cfg = run.load_config() if run.holds_run else None
    return replace((cfg or TrainConfig()).data, subset=(), eval_subset=None)


def step_of(model: str, step: Step) -> int | None:
    """The number of the checkpoint that `step` means of a run; None of released weights."""
    run = RunDirectory(model, main=False)
    if not run.holds_run:
        return None
    if step == "best":
        return best_of(run)
    return max(list_steps(run.checkpoints), default=None) if step is None else step


def absolute(path: str) -> str:
    """A path from the root on, for commands that are started elsewhere; a URL as it is."""
    return path if storage.is_url(path) else os.path.abspath(os.path.expanduser(path))


def absolute_source(spec: str) -> str:
    """The same of a source in files, such as "tar:shards/*.tar"."""
    kind, _, location = spec.partition(":")
    return f"{kind}:{absolute(location)}" if kind in IN_FILES else spec


@together
def embed_into(settings: EmbedSettings) -> int:
    """Embed what the settings say, on all processes of the job."""
    # pyarrow, of an extra, is loaded for the commands that need it alone.
    from clip_jax.collection.embed import EmbedConfig
    from clip_jax.collection.embed import embed as embed_source

    cfg = EmbedConfig(
        what=settings.what,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        part_size=settings.part_size,
    )
    step = step_of(settings.model, settings.step)
    loaded = load_to_host(settings.model, settings.architecture, step=settings.step)
    subset = tuple(one if one == ALL else absolute(one) for one in settings.data.subset)
    data = replace(settings.data, subset=subset)
    source = registry.open_source(settings.source, settings.split, data)
    agreement.check_equal({"samples": len(source), "data": source.fingerprint})
    main = jax.process_index() == 0
    origin = {
        "model": redact(absolute(settings.model)),
        "architecture": settings.architecture,
        "step": step,
        "source": redact(absolute_source(settings.source)),
        "split": settings.split,
        "data_dir": absolute(data.data_dir),
    }
    with tolerant_streams():
        manifest = embed_source(
            loaded,
            source,
            settings.out,
            cfg=cfg,
            data=data,
            mesh=sharding.make_mesh(settings.mesh, jax.local_devices()),
            origin=origin,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            barrier=lambda name: initialize.barrier(name, WAIT_S),
            progress=main and settings.progress,
        )
        if main:
            bad = manifest["bad_samples"]["bad"]
            absent = f", {bad:_} bad samples are absent (bad_samples.jsonl)" if bad else ""
            print(f"{settings.out}: {manifest['rows']:_} rows of {manifest['dim']}{absent}")
    return 0


CLASSIFY_HELP = """Predict the class of every picture of a source by the names of classes.

Predictions go into a CSV or Parquet file, and pictures into folders of links if wanted, such as:
clip-jax classify runs/mine images:/pictures --classes names.txt --out found.csv --links sorted"""


@dataclass(frozen=True, kw_only=True)
class ClassifySettings:
    model: Annotated[str, tyro.conf.Positional]  # a run directory, or released weights
    source: Annotated[str, tyro.conf.Positional]  # such as images:DIRECTORY
    classes: Path  # a text file of class names, one a line
    out: Path = Path("predictions.csv")  # a .csv or .parquet file
    links: Path | None = None  # a folder that gets a folder of links for each class
    templates: Path | None = None  # a text file of prompts with {}; left out: OpenAI's seven
    top: int = 5  # classes of each picture that are written
    min_probability: float = 0.0  # below it, links of a picture go to the folder _unsure
    batch_size: int = 256  # pictures, over all devices
    split: Literal["train", "test"] = "train"  # of a source that has both
    architecture: str | None = None  # where the weights do not tell it
    step: Step = None  # which checkpoint of a run, its number or "best"; left out, the newest
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def classify(args: list[str]) -> int:
    """Predict the class of every picture, and sort pictures as links."""

    def parsed(**defaults) -> ClassifySettings:
        names = dict.fromkeys(("model", "source", "classes"), tyro.MISSING)
        default = ClassifySettings(**names, **defaults)
        return parse(
            ClassifySettings,
            args,
            default=default,
            prog="clip-jax classify",
            description=CLASSIFY_HELP,
        )

    settings = parsed(data=data_of(parsed().model))
    # pyarrow, of an extra, is loaded for the commands that need it alone.
    from clip_jax.collection import classify as classify_lib

    cfg = classify_lib.ClassifyConfig(
        top=settings.top,
        batch_size=settings.batch_size,
        min_probability=settings.min_probability,
    )
    classes = read_classes(str(settings.classes), "--classes")
    templates: Templates = SIMPLE_TEMPLATES
    if settings.templates is not None:
        templates = read_templates(str(settings.templates), "--templates")
        check_prompts(classes, templates, str(settings.templates))
    source = registry.open_source(settings.source, settings.split, settings.data)
    loaded = load_to_host(settings.model, settings.architecture, step=settings.step)
    bad_samples = BadSamples()
    links = None
    if settings.links is not None:
        links = classify_lib.Links(settings.links, classes, cfg.min_probability)
    mesh = sharding.make_mesh(settings.mesh)
    where = {"cfg": cfg, "data": settings.data, "mesh": mesh, "bad_samples": bad_samples}
    predictions = classify_lib.classify(loaded, source, classes, templates, **where)
    counts: Counter[str] = Counter()
    top = min(cfg.top, len(classes))
    written = classify_lib.write_table(settings.out, predictions, top)
    with contextlib.closing(written):  # what is begun is removed where a link cannot be made
        for prediction in written:
            counts[prediction.classes[0]] += 1
            if links is not None:
                links.add(prediction, prediction.row.file)
    for name, count in counts.most_common():
        print(f"{count:8_}  {name}")
    bad = f", {bad_samples.bad:_} bad samples are absent" if bad_samples.bad else ""
    print(f"{settings.out}: {counts.total():_} pictures{bad}")
    return 0

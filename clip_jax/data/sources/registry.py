"""Opens what `data.source` names: one entry point for every format."""

import importlib
from collections.abc import Sequence
from typing import Literal

from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample, Sample, Source
from clip_jax.data.shuffle import hash64

__all__ = [
    "BadSample",
    "Sample",
    "Source",
    "index_source",
    "open_eval_source",
    "open_source",
    "open_sources",
]

Split = Literal["train", "test"]

# Each module has `open_source(location, split, cfg)` and `has_test_split(location, cfg)`, and is
# loaded on use, because tensorflow_datasets and pyarrow are heavy and not always wanted.
FORMATS = {
    "shapes": "clip_jax.data.sources.shapes",
    "pairs": "clip_jax.data.sources.pairs",
    "tfds": "clip_jax.data.sources.tfds",
    "tar": "clip_jax.data.sources.tar",
    "records": "clip_jax.data.sources.records",
    "parquet": "clip_jax.data.sources.parquet",
    "folder": "clip_jax.data.sources.folder",
}


def open_source(spec: str, split: Split, cfg: DataConfig) -> Source:
    """Open the samples that `spec` names.

    Args:
      spec: "shapes", or a format and a place such as "pairs:captions.csv" or "tfds:coco_captions".
      split: "train" or "test". A source without splits of its own gives all of its samples.
      cfg: where prepared data lies and which columns to take.

    Raises:
      ValueError: the format is unknown or the data cannot be used; the message says why.
      FileNotFoundError: a file that the spec names is not there.
    """
    module, location = _parse(spec)
    source = module.open_source(location, split, cfg)
    if len(source) == 0:
        raise ValueError(f"data.source {spec!r} has no samples")
    return source


def open_sources(cfg: DataConfig, split: Split = "train") -> list[Source]:
    """Open all of `cfg.source`, after a check of their weights."""
    check_weights(cfg.source, cfg.weights)
    return [open_source(spec, split, cfg) for spec in cfg.source]


def open_eval_source(cfg: DataConfig) -> Source | None:
    """What a run is evaluated on: `cfg.eval_source`, or the first source's own test split.

    None where there is neither: a list of pairs is all for training.
    """
    if cfg.eval_source is not None:
        return open_source(cfg.eval_source, "test", cfg)
    for spec in cfg.source:
        module, location = _parse(spec)
        if module.has_test_split(location, cfg):
            return open_source(spec, "test", cfg)
    return None


def index_source(spec: str, cfg: DataConfig, *, workers: int | None = None) -> str:
    """Build the index of `spec`, or bring it up to date; what was found, for a terminal.

    Formats that need no index are only opened.
    """
    module, location = _parse(spec)
    if hasattr(module, "index"):
        return str(module.index(location, cfg, workers=workers))
    source = open_source(spec, "train", cfg)
    return f"{source.name}: {len(source):_} samples; this format needs no index"


def fingerprint(sources: Sequence[Source], weights: Sequence[float] | None = None) -> str:
    """Of all that is trained on; a run that goes on compares it."""
    parts = [int(source.fingerprint, 16) % 2**64 for source in sources]
    parts += [int.from_bytes(repr(float(weight)).encode()[:8], "big") for weight in weights or ()]
    return f"{int(hash64(*parts)):016x}"


def check_weights(specs: Sequence[str], weights: Sequence[float] | None):
    """Refuse weights that do not fit the sources."""
    if not specs:
        raise ValueError('data.source is empty; name what to train on, such as "shapes"')
    if weights is None:
        return
    if len(weights) != len(specs):
        raise ValueError(
            f"data.weights has {len(weights)} numbers for {len(specs)} sources; give one for each"
        )
    for spec, weight in zip(specs, weights):
        if not 0 < weight < float("inf"):
            raise ValueError(
                f"data.weights gives {weight} to {spec!r}; a weight must be above 0. Leave the "
                "source out if it is not wanted"
            )


def _parse(spec: str):
    kind, _, location = spec.partition(":")
    if kind not in FORMATS:
        raise ValueError(
            f"data.source {spec!r}: there is no format {kind!r}. A source is "
            f"{', '.join(_example(name) for name in FORMATS)}"
        )
    if not location and kind != "shapes":
        raise ValueError(f"data.source {spec!r} names no data; write {_example(kind)}")
    return importlib.import_module(FORMATS[kind]), location


def _example(kind: str) -> str:
    return {
        "shapes": "shapes",
        "pairs": "pairs:FILE.csv (or .tsv, .jsonl)",
        "tfds": "tfds:NAME",
        "tar": "tar:GLOB",
        "records": "records:GLOB",
        "parquet": "parquet:GLOB",
        "folder": "folder:DIRECTORY (of class folders)",
    }[kind]

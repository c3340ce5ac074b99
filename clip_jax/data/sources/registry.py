"""Opens what `data.source` names: one entry point for every format."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import xxhash
from absl import logging

from clip_jax import registry
from clip_jax.config import DataConfig
from clip_jax.data.bad_samples import refuse_lost
from clip_jax.data.samples import BadSample, Sample, Source, SourceFormat, Split
from clip_jax.data.shuffle import hash64
from clip_jax.data.sources.subset import take_subset

__all__ = [
    "FORMATS",
    "BadSample",
    "Sample",
    "Source",
    "index_source",
    "open_eval_source",
    "open_source",
    "open_sources",
]


class Entry(NamedTuple):
    """A line of the table. Its module is imported on use, since some import what is heavy."""

    example: str  # how it is written in data.source
    record: str  # the SourceFormat, as package.module:NAME


FORMATS = {
    "shapes": Entry("shapes", "clip_jax.data.sources.shapes:FORMAT"),
    "pairs": Entry("pairs:FILE.csv (or .tsv, .jsonl)", "clip_jax.data.sources.pairs:FORMAT"),
    "tfds": Entry("tfds:NAME", "clip_jax.data.sources.tfds:FORMAT"),
    "tar": Entry("tar:GLOB", "clip_jax.data.sources.tar:FORMAT"),
    "records": Entry("records:GLOB", "clip_jax.data.sources.records:FORMAT"),
    "parquet": Entry("parquet:GLOB", "clip_jax.data.sources.parquet:FORMAT"),
    "images": Entry("images:DIRECTORY (without captions)", "clip_jax.data.sources.images:FORMAT"),
    "folder": Entry("folder:DIRECTORY (of class folders)", "clip_jax.data.sources.folder:FORMAT"),
}


def open_source(spec: str, split: Split, cfg: DataConfig) -> Source:
    """Open the samples that `spec` names.

    Args:
      spec: "shapes", a format and a location such as "pairs:captions.csv", or a source from
        outside the tree, `package.module:NAME[:location]` with a dot in the module's name. NAME is
        a SourceFormat, or called as NAME(location, split, cfg).
      split: "train" or "test". A source without splits of its own gives all of its samples.
      cfg: where prepared data lies, which columns to take, and the part of the samples (`subset`,
        of which there is one for this source).

    Raises:
      ValueError: the format is unknown or the data cannot be used; the message says why.
      FileNotFoundError: a file that the spec names is not there.
    """
    if len(cfg.subset) > 1:
        raise ValueError(f"data.subset names {len(cfg.subset)} files for one source, {spec!r}")
    format, location = _parse(spec)
    source = format.open(location, split, cfg)
    if len(source) == 0:
        raise ValueError(f"data.source {spec!r} has no samples")
    source = _complete(source, spec)
    return take_subset(source, cfg.subset[0], cfg) if cfg.subset else source


def open_sources(cfg: DataConfig, split: Split = "train") -> list[Source]:
    """Open all of `cfg.source`, each with its subset, after a check of their weights."""
    check_weights(cfg.source, cfg.weights)
    if cfg.subset and len(cfg.subset) != len(cfg.source):
        raise ValueError(
            f"data.subset names {len(cfg.subset)} files for {len(cfg.source)} sources: give one for "
            'each, "all" where a source is taken whole'
        )
    opened = [
        _open_for_a_run(spec, split, replace(cfg, subset=cfg.subset[place : place + 1]))
        for place, spec in enumerate(cfg.source)
    ]
    if (samples := sum(map(len, opened))) < cfg.batch_size:
        logging.warning(
            "data.batch_size=%d is more than the %d samples: some come several times in each batch, where "
            "a copy counts as a wrong match",
            *(cfg.batch_size, samples),
        )
    return opened


def _open_for_a_run(spec: str, split: Split, cfg: DataConfig) -> Source:
    source = open_source(spec, split, cfg)
    if not getattr(source, "captioned", True):
        raise ValueError(
            f"{source.name} has no captions, so that it cannot be trained or measured on: it is for "
            "clip-jax embed and classify"
        )
    refuse_lost(source, cfg.max_bad_share)
    return source


def open_eval_source(cfg: DataConfig) -> Source | None:
    """What a run is evaluated on: `cfg.eval_source`, or the first source's own test split.

    None where there is neither: a list of pairs is all for training. `cfg.subset` is of the data
    that is trained on; `cfg.eval_subset` is of this.
    """
    cfg = replace(cfg, subset=(cfg.eval_subset,) if cfg.eval_subset else ())
    if cfg.eval_source is not None:
        return _open_for_a_run(cfg.eval_source, "test", cfg)
    for spec in cfg.source:
        format, location = _parse(spec)
        if format.has_test_split(location, cfg):
            return _open_for_a_run(spec, "test", cfg)
    return None


def index_source(spec: str, cfg: DataConfig, *, workers: int | None = None) -> str:
    """Build the index of `spec`, or bring it up to date; what was found, for a terminal.

    Formats that need no index are only opened.
    """
    format, location = _parse(spec)
    if format.index is not None:
        return str(format.index(location, cfg, workers=workers))
    source = open_source(spec, "train", cfg)
    return f"{source.name}: {len(source):_} samples; this format needs no index"


def has_captions(spec: str) -> bool:
    """Whether the format that `spec` names has texts, and not images alone."""
    return _parse(spec)[0].has_captions


def fingerprint(sources: Sequence[Source], weights: Sequence[float] | None = None) -> str:
    """Of all that is trained on; a run that resumes compares it."""
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


def _parse(spec: str) -> tuple[SourceFormat, str]:
    kind, _, location = spec.partition(":")
    name, _, rest = location.partition(":")
    if "." in kind and registry.is_import_path(f"{kind}:{name}"):  # no format has a dot
        location = rest
        found = registry.resolve("data.source", f"{kind}:{name}", {})
        return found if isinstance(found, SourceFormat) else SourceFormat(found), location
    if kind not in FORMATS:
        raise ValueError(
            f"data.source {spec!r}: there is no format {kind!r}; a path has one before it. A source is "
            f"{', '.join(entry.example for entry in FORMATS.values())}, or package.module:NAME"
        )
    example, record = FORMATS[kind]
    if not location and ":" in example:
        raise ValueError(f"data.source {spec!r} names no data; write {example}")
    return registry.resolve("data.source", record, {}), location


def _complete(source: Source, spec: str) -> Source:
    """Fill in the attributes that a class from outside the tree may omit."""
    digest = xxhash.xxh3_64(f"{spec} {len(source)}".encode("utf-8", "surrogateescape"))
    defaults = {
        "name": spec,
        "fingerprint": digest.hexdigest(),
        "classes": None,
        "templates": None,
        "notes": (),
        "lost": 0,
    }
    for name, value in defaults.items():
        if not hasattr(source, name):
            object.__setattr__(source, name, value)
    return source

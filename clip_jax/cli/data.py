"""The commands under `clip-jax data`: index, stats, preview, bench, convert, subset, filter, map."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from clip_jax import storage
from clip_jax.cli.arguments import raise_refusals
from clip_jax.cli.curation import (
    BeamOptions,
    DataSettings,
    Spec,
    filter_source,
    map_source,
    refuse_without_beam,
)
from clip_jax.config import DataConfig
from clip_jax.data.sources import registry
from clip_jax.data.tokenizers.registry import ClipTokenizer
from clip_jax.data.tools import bench as benchmark
from clip_jax.data.tools import convert as conversion
from clip_jax.data.tools import preview as contact_sheet
from clip_jax.data.tools import stats as statistics
from clip_jax.data.tools.make_subset import make_subset

DEFAULT = DataConfig()


def data(args: list[str]) -> int:
    """The commands by their names."""
    commands = {
        "index": index,
        "stats": stats,
        "preview": preview,
        "bench": bench,
        "convert": convert,
        "subset": subset,
        "filter": filter_source,
        "map": map_source,
    }
    later = {name: _later(command) for name, command in commands.items()}
    known = {"args": args, "prog": "clip-jax data"}
    command = raise_refusals(lambda: tyro.extras.subcommand_cli_from_dict(later, **known))
    return command()


def _later(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """A command that is only named with its arguments, and not run while they are parsed."""

    @functools.wraps(command)
    def named(*args, **kwargs) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return named


def index(source: Spec, cfg: DataSettings = DEFAULT) -> int:
    """Build the index of a source, or bring it up to date; what needs none is opened.

    Args:
        source: such as "tar:/data/{00000..00999}.tar".
        cfg: columns, cache folder and the like.
    """
    print(registry.index_source(source, cfg))
    return 0


def stats(source: Spec, max_samples: int = 10_000, cfg: DataSettings = DEFAULT) -> int:
    """Sizes, caption lengths, duplicates and unreadable files of a source.

    Args:
        source: such as "pairs:captions.csv".
        max_samples: how many are looked at, at even distances.
        cfg: columns, cache folder and the like.
    """
    opened = registry.open_source(source, "train", cfg)
    print(statistics.summarize(opened, cfg, max_samples=max_samples).to_text())
    return 0


def preview(
    source: Spec, out: Path = Path("preview.html"), count: int = 100, cfg: DataSettings = DEFAULT
) -> int:
    """A page with some of a source's images and captions.

    Args:
        source: such as "pairs:captions.csv".
        out: the page.
        count: samples on it.
        cfg: columns, cache folder and the like.
    """
    print(contact_sheet.preview(registry.open_source(source, "train", cfg), cfg, out, count=count))
    return 0


def bench(
    source: Spec,
    image_size: int = 224,
    seconds: float = 5.0,
    chip: str = "TPU v5e",
    chips: int = 4,
    json_out: Path | None = None,
    cfg: DataSettings = DEFAULT,
) -> int:
    """Images a second of each stage from file to batch, what limits, and what feeds a host's chips.

    Args:
        source: such as "tar:/data/{00000..00999}.tar" or "tar:gs://bucket/{00000..00999}.tar".
        image_size: pixels on each side.
        seconds: of reading whole batches; behind a URL, of measuring the storage too.
        chip: that a host has, such as "TPU v5e" or H100.
        chips: of that kind in a host.
        json_out: a file for `clip-jax plan --data-bench`.
        cfg: batch size, threads, workers, augmentation.
    """
    benchmark.check_chips(chip, chips)
    if not seconds > 0 or image_size < 1:
        raise ValueError(f"seconds={seconds} and image_size={image_size} must be above 0")
    opened = registry.open_source(source, "train", cfg)
    found = benchmark.bench(opened, ClipTokenizer(), cfg, image_size=image_size, seconds=seconds)
    print("\n".join([found.to_text(), *found.settings_for(chip, chips, cfg)]))
    if json_out is not None:
        storage.atomic_write(json_out, json.dumps(found.to_json(), indent=1) + "\n")
    return 0


def convert(
    source: Spec,
    out: Annotated[str, tyro.conf.Positional],
    beam: bool = False,
    beam_options: BeamOptions = (),
    shuffle: int | None = None,
    cfg: DataSettings = DEFAULT,
) -> int:
    """Write a source as ArrayRecord files with a manifest.

    Args:
        source: such as "tar:/data/{00000..00999}.tar".
        out: a new folder or the URL of one; train on it with "records:OUT". Again, it resumes.
        beam: on Apache Beam, where one machine is too small.
        beam_options: Beam's own, each by itself, such as --beam-options=--runner=FlinkRunner.
        shuffle: the seed of a random order to write in, for data that is sorted; None: its own order.
        cfg: columns, cache folder and the share of bad samples that is let pass.
    """
    refuse_without_beam(beam, beam_options)
    if beam:
        # Apache Beam is a heavy extra that only this needs.
        from clip_jax.data.tools.convert_beam import convert_on_beam

        convert_on_beam(source, cfg, out, shuffle=shuffle, options=beam_options)
    else:
        conversion.convert(source, cfg, out, shuffle=shuffle)
    print(out)
    return 0


def subset(
    source: Spec,
    samples: Annotated[str, tyro.conf.Positional],
    out: Annotated[str, tyro.conf.Positional],
    cfg: DataSettings = DEFAULT,
) -> int:
    """Make a subset file of a list of keys or sample numbers, for --data.subset.

    Args:
        source: such as "tar:/data/{00000..00999}.tar".
        samples: keys, one a line (.txt); or sample numbers, or a truth value for each sample (.npy).
        out: a file that ends in .safetensors.
        cfg: columns, cache folder and the like.
    """
    opened = registry.open_source(source, "train", cfg)
    print(make_subset(opened, samples, out))
    return 0

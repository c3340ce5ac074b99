"""Embeds all of a source into files, part by part: what is killed resumes at the part, bit-identical."""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.collection import layout as layout_lib
from clip_jax.collection.layout import BAD_SAMPLES, MANIFEST, SETTINGS, Layout, Part
from clip_jax.collection.parts import PartWriter
from clip_jax.collection.stream import embedded_batches
from clip_jax.config import DataConfig
from clip_jax.config_io import to_json
from clip_jax.data.bad_samples import BadSamples, refuse_lost
from clip_jax.data.samples import BadSample, Source
from clip_jax.registry import Count, Settings
from clip_jax.runs.console import Console
from clip_jax.storage import atomic_write
from clip_jax.weights.load import Loaded

log = logging.getLogger(__name__)

FORMAT = "clip_jax embeddings 1"
KINDS = {"images": ("image",), "texts": ("text",), "both": ("image", "text")}
# Of the data settings, those that say which samples there are and what is in them.
READING = (
    "image_column", "caption_column", "label_column", "group_rows", "caption_lines", "separator",
    "quoting", "image_folder", "encoding", "exif_rotation", "max_image_pixels", "subset",
)  # fmt: skip
PREPROCESS = ("mean", "std", "interpolation", "resize_mode", "resize_size", "exif_rotation")
AFTER_BARRIER = "all parts are written"

Barrier = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedConfig(Settings):
    """What is embedded, and in which form it is written."""

    what: Literal["images", "texts", "both"] = "both"  # the texts are the first captions
    dtype: Literal["float16", "bfloat16", "float32"] = (
        "float16"  # of the files; FAISS knows no bfloat16
    )
    batch_size: Count = 256  # samples, over the devices of one process
    part_size: Count = 16_384  # samples of a part, at which an interrupted command resumes

    def __post_init__(self):
        super().__post_init__()
        self.require_multiple("part_size", "batch_size")


def embed(
    loaded: Loaded,
    source: Source,
    out: str,
    *,
    cfg: EmbedConfig,
    data: DataConfig,
    mesh: Mesh,
    origin: dict[str, Any],
    process_index: int = 0,
    process_count: int = 1,
    barrier: Barrier = lambda name: None,
    progress: bool = False,
) -> dict:
    """Embed a source into the folder `out`, or resume what was begun there.

    Batches begin at the beginning of a part, so that each is the same batch however often the
    command was killed. Each process embeds every n-th part on devices of its own.

    Args:
      loaded: the model, its tokenizer where texts are embedded, its preprocessing.
      source: images with captions; the order of its samples is the order of the rows.
      out: a folder, or its URL, which all processes share.
      cfg: what, and how it is written.
      data: how samples are read, how many of them may be bad.
      mesh: of devices of this process.
      origin: where model and source are, as JSON, for readers of the manifest.
      process_index: of this process, of `process_count`.
      process_count: the rows do not depend on it.
      barrier: called with a name by all processes; it returns when all have called it.
      progress: whether this process shows where it stands.

    Returns:
      The manifest.

    Raises:
      ValueError: the folder holds something else, or was begun with other settings; the samples
        cannot be read; the model has no tokenizer.
    """
    sharding.check_batch("batch_size", cfg.batch_size, mesh)
    refuse_lost(source, data.max_bad_share)
    if "text" in KINDS[cfg.what] and loaded.tokenizer is None:
        raise ValueError(
            "no tokenizer lies with the model: put its file there, or embed --what images"
        )
    parts = layout_lib.parts_of(len(source), cfg.part_size)
    layout = Layout(out, len(parts))
    settings = describe(loaded, source, cfg, data, origin)
    if process_index == 0:
        begin(layout, settings)
    barrier("the folder of embeddings is open")
    begin(layout, settings)
    work = _Work(loaded, source, layout, cfg, data, mesh, _digest(settings))
    work.run(parts[process_index::process_count], progress=progress)
    barrier(AFTER_BARRIER)
    if process_index == 0:
        finish(layout, parts, settings)
    barrier("the manifest is written")
    return json.loads((layout.root / MANIFEST).read_text())


def describe(
    loaded: Loaded, source: Source, cfg: EmbedConfig, data: DataConfig, origin: dict[str, Any]
) -> dict:
    """What all parts must have in common, as JSON."""
    reading = to_json(data)
    return {
        "format": FORMAT,
        "origin": origin,
        "model_fingerprint": model_fingerprint(loaded),
        "source_fingerprint": source.fingerprint,
        "samples": len(source),
        "reading": {name: reading[name] for name in READING},
        "kinds": list(KINDS[cfg.what]),
        "dtype": cfg.dtype,
        "dim": loaded.model.config.embed_dim,
        "batch_size": cfg.batch_size,
        "part_size": cfg.part_size,
    }


def model_fingerprint(loaded: Loaded) -> str:
    """A checksum of a model's parameters and of how it reads images."""
    digest = xxhash.xxh3_128()
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded.variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data.cast("B"))
    config = loaded.model.config
    reading = [getattr(config.preprocess, name) for name in PREPROCESS]
    # By name, as a version with more settings, or another form of attention, is the same model.
    digest.update(repr((config.vision.image_size, config.dtype, reading)).encode())
    return digest.hexdigest()


def begin(layout: Layout, settings: dict):
    """Note the settings in an empty folder, or compare them with those that it was begun with.

    Raises:
      ValueError: they differ, or the folder holds other files.
    """
    path = layout.root / SETTINGS
    if path.exists():
        old = json.loads(path.read_text())
        if found := list(layout_lib.differences(_fixed(old), _fixed(settings))):
            raise ValueError(
                f"{layout.root} was begun with other settings: {', '.join(found)}. Give it the same "
                "ones to resume, or another folder"
            )
        return
    if layout.root.exists() and any(layout.root.iterdir()):
        raise ValueError(f"{layout.root} holds other files: name a new folder for the embeddings")
    atomic_write(path, json.dumps(settings, indent=1) + "\n")


def finish(layout: Layout, parts: Sequence[Part], settings: dict):
    """Write the list of bad samples, and then the manifest, once all parts are there."""
    records = [layout.read_record(part, _digest(settings)) for part in parts]
    missing = [part.number for part, record in zip(parts, records) if record is None]
    if missing:
        raise ValueError(
            f"{layout.root}: the files of {len(missing)} parts are damaged, such as part {missing[0]}: "
            "run the same command again"
        )
    layout.remove_partial_files()
    lines = (json.dumps(one) + "\n" for record in records for one in record["bad"])
    atomic_write(layout.root / BAD_SAMPLES, "".join(lines))
    content = layout_lib.manifest(settings, records)
    atomic_write(layout.root / MANIFEST, json.dumps(content, indent=1) + "\n")


def _fixed(settings: dict) -> dict:
    """The settings that the rows depend on. Where model and source lay, fingerprints tell better."""
    return {name: value for name, value in settings.items() if name != "origin"}


def _digest(settings: dict) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(_fixed(settings), sort_keys=True).encode())


class _Work:
    """The parts that one process embeds."""

    def __init__(self, loaded, source, layout, cfg, data, mesh, settings):
        self._loaded, self._source, self._layout = loaded, source, layout
        self._cfg, self._data, self._mesh, self._settings = cfg, data, mesh, settings

    def run(self, parts: Sequence[Part], *, progress: bool):
        """Write those of the parts that are not there."""
        bad_samples, todo = BadSamples(), []
        for part in parts:
            record = self._layout.read_record(part, self._settings)
            if record is None:
                todo.append(part)
            else:
                bad = [
                    BadSample(one["reason"], key=one["key"], shard=one["shard"])
                    for one in record["bad"]
                ]
                bad_samples.record(part.last - part.first, bad)
        whole = sum(part.last - part.first for part in parts)
        done = whole - sum(part.last - part.first for part in todo)
        if not todo:
            return
        console = Console(whole, start=done, shown=progress, progress=progress, unit="sample")
        # Files are written while the devices work; one is waited for, so that memory is bounded.
        with console, ThreadPoolExecutor(1, thread_name_prefix="parts") as pool:
            if done:
                console.print(f"{self._layout.root}: {done:_} of {whole:_} samples are done")
            writing: Future | None = None
            for writer in self._embedded(todo, bad_samples, whole, console, done):
                if writing is not None:
                    writing.result()
                writing = pool.submit(writer.write)
            if writing is not None:
                writing.result()

    def _embedded(
        self, todo: Sequence[Part], bad_samples: BadSamples, whole: int, console: Console, done: int
    ) -> Iterator[PartWriter]:
        """The parts in turn, with all rows in memory."""
        size, kinds = self._cfg.batch_size, KINDS[self._cfg.what]
        steps = [(part, first) for part in todo for first in range(part.first, part.last, size)]
        batches = embedded_batches(
            self._loaded,
            self._source,
            self._data,
            self._mesh,
            starts=[first for _, first in steps],
            batch_size=size,
            kinds=kinds,
            bad_samples=bad_samples,
            whole=whole,
        )
        writer, clock, begun = None, None, done
        with contextlib.closing(batches):
            for (part, _), (first, about_B, z) in zip(steps, batches):
                if writer is None:
                    writer = PartWriter(self._layout, part, kinds, self._cfg.dtype, self._settings)
                writer.add(first, about_B, z)
                done += min(first + size, part.last) - first
                console.update(done)
                if clock is None:  # the first batch compiles
                    console.restart_clock()
                    clock, begun = time.monotonic(), done
                else:
                    seconds = (time.monotonic() - clock) / (done - begun)
                    figures = {"": f"{1 / seconds:.0f}/s", "bad": str(bad_samples.bad)}
                    console.show(figures, seconds_a_step=seconds)
                if first + size >= part.last:
                    yield writer
                    writer = None

"""Writes any source as ArrayRecord files with a manifest, on the cores of one machine."""

import concurrent.futures
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import fsspec
import tqdm
import xxhash
from array_record.python.array_record_module import ArrayRecordWriter

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.bad_samples import BadSamples, refuse_lost
from clip_jax.data.loader import cores
from clip_jax.data.samples import BadSample, Source
from clip_jax.data.sources import record_blocks, records, tar_parts
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tools.shuffled import in_order
from clip_jax.redaction import masks_logs, redact, redact_logs

PREFIX = "pairs-"  # of the names of the files
SHARD_SAMPLES = 10_000
PROGRESS = ".progress"  # a folder of what was written, until there is a manifest
KEPT_BAD = 1000  # bad samples that the manifest names


def convert(
    spec: str,
    cfg: DataConfig,
    out: str,
    *,
    split: str = "train",
    shard_samples: int = SHARD_SAMPLES,
    workers: int | None = None,
    shuffle: int | None = None,
) -> dict:
    """Write the samples of `spec` into the folder `out`; read them with "records:OUT".

    Args:
      spec: a source as in `data.source`.
      cfg: its columns, where indexes lie, and the share of bad samples that is let pass.
      out: a folder or an fsspec URL that holds no conversion yet. Files of one of the same source
        that did not end are kept.
      split: of a source that has splits.
      shard_samples: samples in a file.
      workers: processes; None: one a core.
      shuffle: the seed of a random order in which samples are written, each read by itself; None: in
        that of the source.

    Returns:
      The manifest that is written last, as manifest.json: name, samples, size and xxh3 hash of
      each file, and what was skipped and why.

    Raises:
      ValueError: `out` holds a conversion, or more than cfg.max_bad_share of the samples are bad.
    """
    source = in_order(open_source(spec, split, cfg), shuffle)
    refuse_lost(source, cfg.max_bad_share)
    plan = plan_shards(len(source), out, shard_samples)
    workers = min(workers or cores(), len(plan))
    shown = {"total": len(plan), "unit": "file", "disable": None, "desc": "Converting"}
    if workers == 1:
        entries = list(tqdm.tqdm((write_shard(source, *part) for part in plan), **shown))
    else:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=spawn, initializer=_set_source, initargs=(source, masks_logs())
        ) as pool:
            entries = list(tqdm.tqdm(pool.map(_write_shard, plan), **shown))
    return write_manifest(entries, source, out, cfg.max_bad_share)


def plan_shards(samples: int, out: str, shard_samples: int) -> list[tuple[int, int, str]]:
    """First and last sample and the path of each file."""
    if shard_samples < 1:
        raise ValueError(f"shard_samples={shard_samples} must be at least 1")
    filesystem, folder = fsspec.core.url_to_fs(out)
    if filesystem.exists(f"{folder}/{records.MANIFEST}"):
        raise ValueError(f"{out} holds converted data; choose another folder, or delete it")
    count = -(-samples // shard_samples)
    left = [
        os.path.basename(name) for name in filesystem.glob(f"{folder}/{PREFIX}*{records.SUFFIX}")
    ]
    others = [name for name in left if not name.endswith(f"-of-{count:05d}{records.SUFFIX}")]
    if others:
        raise ValueError(
            f"{out} holds {len(others)} files of another conversion that did not end, such as "
            f"{others[0]}; delete them, or choose another folder"
        )
    filesystem.makedirs(folder, exist_ok=True)
    return [
        (
            number * shard_samples,
            min(samples, (number + 1) * shard_samples),
            f"{out.rstrip('/')}/{PREFIX}{number:05d}-of-{count:05d}{records.SUFFIX}",
        )
        for number in range(count)
    ]


def write_shard(source: Source, start: int, end: int, path: str) -> dict:
    """Write samples `start` to `end` as one file, unless it is there; its entry of the manifest."""
    of = {"fingerprint": source.fingerprint, "start": start, "end": end}
    if (known := _read_progress(path, of)) is not None:
        return known
    bad: list[BadSample] = []
    written = 0
    folder = None if storage.is_url(path) else os.path.dirname(path)
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=".partial-")
    os.close(descriptor)
    try:
        # One record a chunk, so that reading one decompresses no other; images are compressed.
        writer = ArrayRecordWriter(partial, "group_size:1,uncompressed")
        for index in range(start, end):
            try:
                record = records.encode(source[index])
            except BadSample as error:
                bad.append(error)
                continue
            writer.write(record)
            written += 1
        writer.close()
        entry = {
            "name": os.path.basename(path),
            "samples": written,
            "size": os.path.getsize(partial),
            "xxh3": _hash(partial),
            **_layout(partial),
            "bad": [[error.key, error.reason, error.shard] for error in bad],
        }
        if folder is None:
            filesystem, name = fsspec.core.url_to_fs(path)
            filesystem.put_file(partial, name)
        else:
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        # Only when the file is there: a conversion that goes on takes it for whole.
        _write_progress(path, of | {"entry": entry})
    finally:
        Path(partial).unlink(missing_ok=True)
    return entry


def _layout(path: str) -> dict:
    """Where blocks begin, so that readers in a bucket need no look at the files' ends."""
    (info,) = storage.stat([path])
    found = record_blocks.describe(path, info)
    return {name: found[name] for name in ("blocks", "footer")}


def write_manifest(entries: Iterable[dict], source: Source, out: str, max_bad_share: float) -> dict:
    """Check how much was skipped, then print what was written."""
    entries = sorted(entries, key=lambda entry: entry["name"])
    bad_samples = BadSamples()
    for entry in entries:
        bad = [BadSample(reason, key=key, shard=shard) for key, reason, shard in entry["bad"]]
        bad_samples.record(entry["samples"] + len(bad), bad)
    bad_samples.check(max_bad_share, whole=bad_samples.seen)
    bad = [pair for entry in entries for pair in entry["bad"]]
    manifest = {
        "format": "ArrayRecord of tf.train.Example with image, caption, key",
        "source": redact(source.name),
        "fingerprint": source.fingerprint,
        "classes": list(source.classes or ()),
        "templates": list(source.templates or ()),
        "samples": sum(entry["samples"] for entry in entries),
        "left_out": dict(Counter(reason for _, reason, _ in bad)),
        "left_out_first": [[key, reason] for key, reason, _ in bad[:KEPT_BAD]],
        "shards": [{key: entry[key] for key in entry if key != "bad"} for entry in entries],
    }
    filesystem, folder = fsspec.core.url_to_fs(out)
    filesystem.pipe_file(f"{folder}/{records.MANIFEST}", json.dumps(manifest, indent=1).encode())
    if filesystem.exists(f"{folder}/{PROGRESS}"):
        filesystem.rm(f"{folder}/{PROGRESS}", recursive=True)
    return manifest


def _progress(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{PROGRESS}/{name}.json"


def _read_progress(path: str, of: dict) -> dict | None:
    """The entry of a file that an earlier start wrote whole, of the same samples of the same source."""
    filesystem, name = fsspec.core.url_to_fs(_progress(path))
    if not filesystem.exists(name):
        return None
    known = json.loads(filesystem.cat_file(name))
    entry = known.pop("entry")
    file, size = fsspec.core.url_to_fs(path)[1], entry["size"]
    whole = filesystem.exists(file) and filesystem.info(file)["size"] == size
    return entry if known == of and whole else None


def _write_progress(path: str, progress: dict):
    tar_parts.put(_progress(path), json.dumps(progress).encode())


def _hash(path: str) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


_source: Source | None = None  # of a worker process: pickled once, and not with each file


def _set_source(source: Source, masked: bool):
    global _source
    _source = source
    if masked:
        redact_logs()


def _write_shard(part: tuple[int, int, str]) -> dict:
    assert _source is not None
    return write_shard(_source, *part)

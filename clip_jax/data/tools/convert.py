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
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import cores
from clip_jax.data.samples import BadSample, Source
from clip_jax.data.sources import records
from clip_jax.data.sources.registry import open_source
from clip_jax.redaction import masks_logs, redact, redact_logs

PREFIX = "pairs-"  # of the names of the files
SHARD_SAMPLES = 10_000
KEPT_BAD = 1000  # bad samples that the manifest names


def convert(
    spec: str,
    cfg: DataConfig,
    out: str,
    *,
    split: str = "train",
    shard_samples: int = SHARD_SAMPLES,
    workers: int | None = None,
) -> dict:
    """Write the samples of `spec` into the folder `out`; read them with "records:OUT".

    Args:
      spec: a source as in `data.source`.
      cfg: its columns, where indexes lie, and the share of bad samples that is let pass.
      out: a folder or an fsspec URL that holds no conversion yet. It is read there if it is a
        folder or gs://; from another bucket it has to be copied.
      split: of a source that has splits.
      shard_samples: samples in a file.
      workers: processes; None: one a core.

    Returns:
      The manifest that is written last, as manifest.json: name, samples, size and xxh3 hash of
      each file, and what was skipped and why.

    Raises:
      ValueError: `out` holds a conversion, or more than cfg.max_bad_share of the samples are bad.
    """
    source = open_source(spec, split, cfg)
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
    left = filesystem.glob(f"{folder}/{PREFIX}*{records.SUFFIX}")
    if left:
        raise ValueError(
            f"{out} holds {len(left)} files of a conversion that did not end, such as "
            f"{os.path.basename(left[0])}; delete them, or choose another folder"
        )
    filesystem.makedirs(folder, exist_ok=True)
    count = -(-samples // shard_samples)
    return [
        (
            number * shard_samples,
            min(samples, (number + 1) * shard_samples),
            f"{out.rstrip('/')}/{PREFIX}{number:05d}-of-{count:05d}{records.SUFFIX}",
        )
        for number in range(count)
    ]


def write_shard(source: Source, start: int, end: int, path: str) -> dict:
    """Write samples `start` to `end` as one file; its entry of the manifest."""
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
            "bad": [[error.key, error.reason, error.shard] for error in bad],
        }
        if folder is None:
            filesystem, name = fsspec.core.url_to_fs(path)
            filesystem.put_file(partial, name)
        else:
            os.chmod(partial, 0o644)
            os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return entry


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
    return manifest


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

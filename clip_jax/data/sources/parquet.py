"""Parquet files with images in them or paths to images, read by row groups."""

import functools
import os
import threading
from collections import OrderedDict

import fsspec
import numpy as np
import xxhash
from absl import logging

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample, Sample, SourceFormat
from clip_jax.data.sources import columns, labels
from clip_jax.data.sources.image_files import read_image

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ValueError("Parquet needs pyarrow: pip install -e '.[parquet]' in the clone") from error

CACHE_BYTES = 1 << 30  # of row groups that are kept decoded


class DamagedGroup(ValueError):
    """A row group whose bytes can be read and are not what was written."""


class ParquetSource:
    """Rows of Parquet files. An image is bytes, a struct with `bytes`, or a path.

    Parquet has no random access below a row group: one is decoded for each sample that is not
    among those kept in memory. `clip-jax data convert` turns such files into ArrayRecord.
    """

    templates = None

    def __init__(
        self,
        paths: list[str],
        *,
        name: str,
        image_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        training: bool = True,
    ):
        self._again = functools.partial(
            ParquetSource,
            paths,
            name=name,
            image_column=image_column,
            caption_column=caption_column,
            label_column=label_column,
            training=training,
        )
        self._training = training
        self.name, self._paths = name, paths
        self._groups = []  # file, row group
        rows, sizes, digest = [0], [], xxhash.xxh3_64()
        for number, path in enumerate(paths):
            metadata = _open(path).metadata
            digest.update(f"{os.path.basename(path)} {metadata.num_rows}".encode())
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                rows.append(metadata.row_group(group).num_rows)
                sizes.append(metadata.row_group(group).total_byte_size)
        self._first_G = np.cumsum(rows)
        self.fingerprint = digest.hexdigest()
        schema = _open(paths[0]).schema_arrow
        self._image = columns.find_column(
            "image", image_column, columns.IMAGE_NAMES, schema.names, where=paths[0]
        )
        self._find_labels(schema, label_column)
        self._captions = columns.find_captions(
            caption_column, schema.names, where=paths[0], optional=self._label is not None
        )
        if self._label is not None:
            captioned = bool(self._captions.names)
            labels.check_names(self, training=training, captioned=captioned)
        self._lock, self._cache, self._kept = threading.Lock(), OrderedDict(), 0
        self._loading: dict[int, threading.Lock] = {}
        self._damaged: set[int] = set()
        self._check(schema, sizes)

    def __len__(self) -> int:
        return int(self._first_G[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._first_G, index, side="right")) - 1
        path = self._paths[self._groups[group][0]]
        shard = os.path.basename(path)
        key = f"{shard}/{index}"
        try:
            table = self._table(group)
        except DamagedGroup as error:
            raise BadSample("unreadable-row-group", key=key, shard=shard) from error
        place = index - int(self._first_G[group])
        try:
            row = {name: table[name][place].as_py() for name in self._captions.names}
        except UnicodeDecodeError as error:
            raise BadSample("unreadable-caption", key=key, shard=shard) from error
        captions, probs = self._captions.choose(self._captions.texts(row))
        label = self._label_of(table[self._label][place].as_py()) if self._label else None
        captions = captions or labels.stand_in(label, self.classes, training=self._training)
        if not captions:
            raise BadSample("missing-caption", key=key, shard=shard)
        image = _image(table[self._image][place].as_py(), path, key, shard)
        return Sample(
            image=image, captions=captions, key=key, shard=shard, label=label, caption_probs=probs
        )

    def _find_labels(self, schema: pa.Schema, given: str | None):
        """The label column, and names of the classes out of the files or from beside them."""
        self.classes, self._label_of = None, labels.parse_label
        self._label = columns.find_label(given, schema.names, where=self._paths[0])
        if self._label is None:
            return
        kind = schema.field(self._label).type
        if pa.types.is_integer(kind):
            found = labels.hugging_face_names(schema.metadata, self._label)
            self.classes = found or labels.class_names(self._paths[0].rpartition("/")[0])
        elif given is None:
            self._label = None
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            columns_of_files = (_open(path).read([given])[given] for path in self._paths)
            names = {name for column in columns_of_files for name in column.unique().to_pylist()}
            self.classes = tuple(sorted(filter(None, names)))
            self._label_of = {name: label for label, name in enumerate(self.classes)}.get
        else:
            raise ValueError(
                f"{self._paths[0]}: the label column {given!r} holds {kind}; it must hold whole "
                "numbers or names of classes (data.label_column)"
            )

    def _table(self, group: int) -> pa.Table:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            loading = self._loading.setdefault(group, threading.Lock())
        with loading:  # of threads that want the same group, one decodes it
            with self._lock:
                if group in self._cache:
                    return self._cache[group]
            file, number = self._groups[group]
            label = [self._label] if self._label else []
            wanted = list(dict.fromkeys([self._image, *self._captions.names, *label]))
            path = self._paths[file]
            if group in self._damaged:
                raise DamagedGroup(f"{path}, row group {number}")
            try:
                table = storage.retry(lambda: _read_group(path, number, wanted), path)
            except DamagedGroup:
                self._damaged.add(group)  # each of its rows would decode it again
                raise
            with self._lock:
                self._cache[group] = table
                self._kept += table.nbytes
                while self._kept > CACHE_BYTES and len(self._cache) > 1:
                    self._kept -= self._cache.popitem(last=False)[1].nbytes
                self._loading.pop(group, None)
            return table

    def _check(self, schema: pa.Schema, sizes: list[int]):
        for name in self._captions.names:
            kind = schema.field(name).type
            if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
                raise ValueError(
                    f"{self._paths[0]}: the caption column {name!r} holds numbers ({kind}), not text; "
                    "name the right one with data.caption_column"
                )
        if not pa.types.is_string(schema.field(self._image).type) and sum(sizes) > CACHE_BYTES:
            logging.warning(
                "%s has %.1f GB in row groups of %.0f MB, and a shuffled order decodes a whole one "
                "for almost each sample. `clip-jax data convert` makes it fast.",
                self.name, sum(sizes) / 1e9, max(sizes) / 1e6,
            )  # fmt: skip

    def __reduce__(self):
        return self._again, ()


def open_source(location: str, split: str, cfg: DataConfig) -> ParquetSource:
    """The files that the pattern `location` names, or all of a folder; they have no splits."""
    pattern = f"{location.rstrip('/')}/*.parquet" if storage.is_folder(location) else location
    return ParquetSource(
        storage.expand(pattern),
        name=f"parquet:{location}",
        image_column=cfg.image_column,
        caption_column=cfg.caption_column,
        label_column=cfg.label_column,
        training=split == "train",
    )


def _open(path: str) -> pq.ParquetFile:
    try:
        if storage.is_url(path):
            filesystem, name = fsspec.core.url_to_fs(path)
            return pq.ParquetFile(name, filesystem=filesystem)
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a whole Parquet file: {error}") from error


def _read_group(path: str, number: int, names: list[str]) -> pa.Table:
    file = _open(path)
    try:
        return file.read_row_group(number, names)
    except (pa.ArrowException, OSError) as error:
        # Arrow says OSError also of bytes that it cannot make sense of, but without a number.
        damaged = isinstance(error, pa.ArrowException) and not isinstance(error, MemoryError)
        if damaged or (type(error) is OSError and not error.errno):
            raise DamagedGroup(f"{path}, row group {number}: {error}") from error
        raise


def _image(value, path: str, key: str, shard: str) -> bytes:
    """The encoded file out of bytes, a path, or the struct of both that Hugging Face writes."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise BadSample("missing-image", key=key, shard=shard)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise BadSample("not-an-image", key=key, shard=shard)
    if not storage.is_url(value) and not os.path.isabs(value):
        value = f"{path.rpartition('/')[0] or '.'}/{value}"
    return read_image(value, key=f"{key} {value}", shard=shard)


FORMAT = SourceFormat(open_source)

"""Parquet files with images in them or paths to images, read by row groups."""

import concurrent.futures
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import fsspec
import numpy as np
import xxhash
from absl import logging

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.block_cache import Span
from clip_jax.data.block_order import Blocks
from clip_jax.data.samples import BadSample, Sample, SourceFormat, Split
from clip_jax.data.sources import columns, labels, splits
from clip_jax.data.sources.grouping import RowsOfSamples, open_groups
from clip_jax.data.sources.list_index import cache_folder
from clip_jax.data.sources.patterns import expand

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ValueError("Parquet needs pyarrow: pip install -e '.[parquet]' in the clone") from error

from clip_jax.data.sources import parquet_types  # it needs pyarrow too, as do these
from clip_jax.data.sources.parquet_blocks import (
    DamagedGroup,
    GroupRun,
    checked,
    image_of,
    read_group,
    span_of,
)

OPENED_AT_ONCE = 16  # files
MOST_COMPARED = 1 << 30  # bytes of files with images in them that are read to find equal ones
CACHE_BYTES = 1 << 30  # of row groups that are kept decoded


class ParquetSource:
    """Rows of Parquet files. An image is bytes, a struct with `bytes`, or a path.

    Parquet has no random access below a row group: one is decoded for each sample that is not
    among those kept in memory. `clip-jax data convert` turns such files into ArrayRecord.
    """

    templates = None

    def __init__(self, paths: list[str], *, name: str, cfg: DataConfig, training: bool = True):
        self._training, self.name, self._paths, self.notes = training, name, paths, ()
        with concurrent.futures.ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            heads = list(pool.map(_head, paths))
        self._metadata = [head.metadata for head in heads]
        digest = xxhash.xxh3_64()
        for path, head in zip(paths, heads):
            digest.update(f"{os.path.basename(path)} {sum(head.rows)}".encode())
        self.fingerprint = digest.hexdigest()
        groups = [
            (file, group) for file, head in enumerate(heads) for group in range(len(head.rows))
        ]
        self._groups_G2 = np.array(groups, np.int32).reshape(-1, 2)  # file, row group
        self._first_G = np.cumsum([0, *(count for head in heads for count in head.rows)])
        sizes = [size for head in heads for size in head.sizes]
        schema = heads[0].schema
        self._image = columns.find_column(
            "image", cfg.image_column, columns.IMAGE_NAMES, schema.names, where=paths[0]
        )
        self._find_labels(schema, cfg.label_column)
        self._captions = columns.find_captions(
            cfg.caption_column, schema.names, where=paths[0], optional=self._label is not None
        )
        if self._label is not None:
            captioned = bool(self._captions.names)
            labels.check_names(self, training=training, captioned=captioned)
        tops = self._captions.tops(schema.names)
        label = [self._label] if self._label else []
        self._wanted = list(dict.fromkeys([self._image, *tops, *label]))
        parquet_types.check_same(paths, [head.schema for head in heads], self._wanted)
        parquet_types.check_captions(schema, self._captions, where=paths[0])
        self._warn(schema, sizes)
        self._samples = self._group(schema, sizes, cfg) if cfg.group_rows else None
        self.remote = storage.is_url(paths[0])
        self._infos, self._mean_bytes = storage.stat(paths), float(np.mean(sizes or [0]))
        self._open_cache()

    def _open_cache(self):
        self._lock, self._cache, self._kept = threading.Lock(), OrderedDict(), 0
        self._loading: dict[int, threading.Lock] = {}
        self._damaged: set[int] = set()

    def __getstate__(self) -> dict:
        """Without what was read; the files are not opened again."""
        own = ("_lock", "_cache", "_kept", "_loading", "_damaged")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._open_cache()

    def __len__(self) -> int:
        return int(self._first_G[-1]) if self._samples is None else len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = [index] if self._samples is None else self._samples[index]
        return self.sample(rows)

    @property
    def blocks(self) -> Blocks | None:
        """Row groups, unless the rows of one image are put together from all over the files."""
        if self._samples is not None:
            return None
        return Blocks(self._first_G.astype(np.int64), self._mean_bytes)

    def span(self, start: int, end: int) -> Span:
        """Where the columns of the row group are in which samples `start` to `end` lie."""
        file, group = self._groups_G2[self._group_of(start)].tolist()
        first, last = span_of(self._metadata[file], group, self._wanted)
        return Span(self._paths[file], first, last, self._infos[file])

    def unpack(self, start: int, end: int, data: bytes) -> "GroupRun":
        """These samples, of the bytes of their span."""
        file, group = self._groups_G2[self._group_of(start)].tolist()
        path, first, _, info = self.span(start, end)
        what = (self._metadata[file], group, self._wanted, first, data, info.size)
        try:
            return GroupRun(self.sample, checked(lambda: read_group(*what), path, group))
        except DamagedGroup:
            return GroupRun(self.sample, None)

    def sample(
        self, rows: Sequence[int], table: "pa.Table | Literal['damaged'] | None" = None
    ) -> Sample:
        """The sample of some rows, of their row group's `table` if that has been read."""
        value, path, key, label, captions, probs = None, "", "", None, [], []
        for number, row in enumerate(rows):
            found = self._row(row, table)
            texts, shares = self._captions.choose(found.texts)
            captions += texts
            probs += shares or ()
            if number == 0:
                value, path, key, label = found.image, found.path, found.key, found.label
        shard, total = os.path.basename(path), sum(probs)
        captions = tuple(captions) or labels.stand_in(label, self.classes, training=self._training)
        if not captions:
            raise BadSample("missing-caption", key=key, shard=shard)
        image = image_of(value, path, key, shard)
        shares = tuple(prob / total for prob in probs) if probs else None
        return Sample(
            image=image, captions=captions, key=key, shard=shard, label=label, caption_probs=shares
        )

    def _group_of(self, number: int) -> int:
        return int(np.searchsorted(self._first_G, number, side="right")) - 1

    def _row(self, number: int, table: "pa.Table | Literal['damaged'] | None") -> "_Row":
        group = self._group_of(number)
        path = self._paths[self._groups_G2[group, 0]]
        shard = os.path.basename(path)
        key = f"{shard}/{number}"
        try:
            table = self._table(group) if table is None else table
        except DamagedGroup as error:
            raise BadSample("unreadable-row-group", key=key, shard=shard) from error
        if isinstance(table, str):
            raise BadSample("unreadable-row-group", key=key, shard=shard)
        place = number - int(self._first_G[group])
        try:
            row = {name: table[name][place].as_py() for name in table.column_names}
            texts = self._captions.texts(row)
        except UnicodeDecodeError as error:
            raise BadSample("caption-not-utf8", key=key, shard=shard) from error
        except columns.NotText as error:
            raise BadSample("caption-not-text", key=key, shard=shard) from error
        label = self._label_of(row[self._label]) if self._label else None
        return _Row(row[self._image], texts, label, path, key)

    def _group(self, schema: pa.Schema, sizes: list[int], cfg: DataConfig) -> RowsOfSamples | None:
        """The rows of each image, where there are images with several."""
        if not self._captions.names:
            return None
        embedded = not parquet_types.is_text(schema.field(self._image).type)
        if embedded and sum(sizes) > MOST_COMPARED:
            self.notes += (
                f"images in more than {MOST_COMPARED / 1e9:.0f} GB of files are not compared: rows of "
                "one image are samples of their own",
            )
            return None
        infos = [tuple(info) for info in storage.stat(self._paths)]
        key = repr((self._paths, infos, self._image, self._captions, self._label))

        def hashes() -> np.ndarray:
            with concurrent.futures.ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
                parts = pool.map(self._hashes_of, range(len(self._groups_G2)))
                return np.concatenate([np.empty(0, np.uint64), *parts])

        samples = open_groups(key, hashes, cache_folder(cfg.data_dir))
        if samples is not None:
            self.fingerprint = xxhash.xxh3_64_hexdigest(f"{self.fingerprint} grouped".encode())
            self.notes += (
                f"{int(self._first_G[-1]):_} rows are {len(samples):_} images, each with all of its "
                "captions; data.group_rows=False keeps a sample for each row",
            )
        return samples

    def _hashes_of(self, group: int) -> np.ndarray:
        file, number = self._groups_G2[group]
        path = self._paths[file]
        try:
            table = storage.retry(lambda: _read_group(path, int(number), self._wanted), path)
        except DamagedGroup:
            return np.zeros(int(self._first_G[group + 1] - self._first_G[group]), np.uint64)
        label = self._label and table[self._label]
        return parquet_types.image_hashes(table, self._image, self._captions, label)

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
        elif parquet_types.is_text(kind):
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
            file, number = self._groups_G2[group].tolist()
            path = self._paths[file]
            if group in self._damaged:
                raise DamagedGroup(f"{path}, row group {number}")
            try:
                table = storage.retry(lambda: _read_group(path, number, self._wanted), path)
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

    def _warn(self, schema: pa.Schema, sizes: list[int]):
        if not parquet_types.is_text(schema.field(self._image).type) and sum(sizes) > CACHE_BYTES:
            logging.warning(
                "%s has %.1f GB in row groups of %.0f MB, and a shuffled order decodes a whole one "
                "for almost each sample. `clip-jax data convert` makes it fast.",
                self.name, sum(sizes) / 1e9, max(sizes) / 1e6,
            )  # fmt: skip


class _Row(NamedTuple):
    image: object
    texts: list[list[str]]  # by caption column
    label: int | None
    path: str
    key: str


def open_source(location: str, split: Split, cfg: DataConfig) -> ParquetSource:
    """The files that the pattern `location` names, or all of a folder."""
    name = f"parquet:{location}"
    paths, left_out = splits.choose(_expand(location), split, name=name)
    source = ParquetSource(paths, name=name, cfg=cfg, training=split == "train")
    source.notes += (left_out,) * bool(left_out)
    return source


def has_test_split(location: str, cfg: DataConfig) -> bool:
    """Whether the names of the files tell training from test, as Hugging Face's do."""
    return splits.has_test(_expand(location))


def _expand(location: str) -> list[str]:
    folder = storage.is_folder(location)
    return expand(f"{location.rstrip('/')}/*.parquet" if folder else location)


class _Head(NamedTuple):
    metadata: pq.FileMetaData
    schema: pa.Schema
    rows: list[int]  # of each row group
    sizes: list[int]  # bytes of each row group


def _head(path: str) -> _Head:
    file = storage.retry(lambda: _open(path), path)
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    sizes = [group.total_byte_size for group in groups]
    return _Head(file.metadata, file.schema_arrow, rows, sizes)


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
    return checked(lambda: file.read_row_group(number, names), path, number)


FORMAT = SourceFormat(open_source, has_test_split)

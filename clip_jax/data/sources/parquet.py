"""Parquet files with images in them or paths to images, read by row groups."""

import concurrent.futures
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import tqdm
import xxhash
from absl import logging

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.block_cache import Span
from clip_jax.data.block_order import Blocks
from clip_jax.data.samples import BadSample, Sample, SourceFormat, Split
from clip_jax.data.sources import columns, image_files, labels, splits
from clip_jax.data.sources.grouping import RowsOfSamples, is_grouped, open_groups, repeats
from clip_jax.data.sources.list_index import cache_folder
from clip_jax.data.sources.patterns import expand_folder

try:
    import pyarrow as pa
except ModuleNotFoundError as error:
    raise ValueError("Parquet needs pyarrow: pip install -e '.[parquet]' in the clone") from error

from clip_jax.data.sources import parquet_types  # it needs pyarrow too
from clip_jax.data.sources.parquet_blocks import GroupBlocks, GroupRun, image_of, image_value
from clip_jax.data.sources.parquet_files import (
    DamagedGroup,
    Row,
    first_rows,
    head,
    open_file,
    or_damaged,
    read_group,
)  # fmt: skip

ENDINGS = (".parquet",)
OPENED_AT_ONCE = 16  # files
MOST_COMPARED = 1 << 30  # bytes of embedded images that a start reads to find equal ones
COMPARED_AT_ONCE = 4 << 30  # bytes of row groups
HASHED_AT_ONCE = 256  # rows
CACHE_BYTES = 1 << 30  # of row groups that are kept decoded


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
        cfg: DataConfig,
        training: bool = True,
        whole: bool = False,
    ):
        self._training, self.name, self._paths, self.notes = training, name, paths, ()
        with concurrent.futures.ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            heads = list(pool.map(head, paths))
        digest = xxhash.xxh3_64()
        for path, one in zip(paths, heads):
            digest.update(f"{os.path.basename(path)} {sum(one.rows)}".encode())
        self.fingerprint = digest.hexdigest()
        groups = [(file, group) for file, one in enumerate(heads) for group in range(len(one.rows))]
        self._groups_G2 = np.array(groups, np.int32).reshape(-1, 2)  # file, row group
        self._first_G = np.cumsum([0, *(count for one in heads for count in one.rows)])
        sizes = [size for one in heads for size in one.sizes]
        schema = heads[0].schema
        if not self._first_G[-1]:
            raise ValueError(f"{paths[0]} has columns but no rows")
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
        self._wanted = list(dict.fromkeys(filter(None, [self._image, *tops, self._label])))
        self.notes += columns.unread(self._captions, cfg.caption_column, schema.names)
        parquet_types.check_same(paths, [one.schema for one in heads], self._wanted)
        parquet_types.check_image(schema, self._image, where=paths[0])
        parquet_types.check_captions(schema, self._captions, where=paths[0])
        self._look_at_first_rows(paths[0])
        self._warn(schema, sizes)
        grouped = cfg.group_rows and bool(self._captions.names)
        self._samples = self._group(schema, sizes, cfg, whole) if grouped else None
        self.remote = storage.is_url(paths[0])
        metadata = [one.metadata for one in heads]
        self._blocks = GroupBlocks(paths, metadata, self._groups_G2, self._first_G, self._wanted)
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
        return self.sample([index] if self._samples is None else self._samples[index])

    @property
    def blocks(self) -> Blocks | None:
        """Row groups, unless the rows of one image are put together from all over the files."""
        return self._blocks.blocks if self._samples is None else None

    def span(self, start: int, end: int) -> Span:
        """Where the wanted columns of the row group are in which samples `start` to `end` lie."""
        return self._blocks.span(start)

    def unpack(self, start: int, end: int, data: bytes | bytearray) -> GroupRun:
        """These samples, of the bytes of their span."""
        return GroupRun(self.sample, self._blocks.unpack(start, data))

    def sample(self, rows: Sequence[int], table: pa.Table | DamagedGroup | None = None) -> Sample:
        """The sample of some rows, of their row group's `table` where that has been read."""
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
        image, file = image_of(value, path, key, shard)
        shares = tuple(prob / total for prob in probs) if probs else None
        return Sample(
            image=image,
            captions=captions,
            key=key,
            shard=shard,
            label=label,
            caption_probs=shares,
            path=file,
        )

    def _row(self, number: int, table: pa.Table | DamagedGroup | None) -> Row:
        group = int(np.searchsorted(self._first_G, number, side="right")) - 1
        path = self._paths[self._groups_G2[group, 0]]
        shard = os.path.basename(path)
        key = f"{shard}/{number}"
        try:
            table = self._table(group) if table is None else table
            if isinstance(table, DamagedGroup):
                raise table
        except DamagedGroup as error:
            raise BadSample("unreadable-row-group", key=key, shard=shard) from error
        place = number - int(self._first_G[group])
        try:
            row = {name: table[name][place].as_py() for name in table.column_names}
            texts = self._captions.texts(row)
        except UnicodeDecodeError as error:
            raise BadSample("caption-not-utf8", key=key, shard=shard) from error
        except columns.NotText as error:
            raise BadSample("caption-not-text", key=key, shard=shard) from error
        label = self._label_of(row[self._label]) if self._label else None
        return Row(row[self._image], texts, label, path, key)

    def _group(
        self, schema: pa.Schema, sizes: list[int], cfg: DataConfig, whole: bool
    ) -> RowsOfSamples | None:
        """The rows of each image, where there are images with several.

        Embedded images are compared by the hashes of their bytes, which means to read them once.
        Beyond MOST_COMPARED that is done only if rows share images at the beginning, or if asked
        for the `whole`; what was found is kept.
        """
        embedded = not parquet_types.is_text(schema.field(self._image).type)
        infos = [tuple(info) for info in storage.stat(self._paths)]
        key = repr((self._paths, infos, self._image, self._captions, self._label))
        cache = cache_folder(cfg.data_dir)
        groups = range(len(self._groups_G2))
        if embedded and sum(sizes) > MOST_COMPARED and not whole and not is_grouped(key, cache):
            first = groups[: max(1, int(np.searchsorted(np.cumsum(sizes), MOST_COMPARED)))]
            if not repeats(self._hashes(first, sizes)):
                self.notes += (
                    f"the first {int(self._first_G[len(first)]):_} rows share no image; the others "
                    "were not compared, as they are too many bytes for a start: `clip-jax data index "
                    f"{self.name}` does it once",
                )
                return None
        samples = open_groups(key, lambda: self._hashes(groups, sizes), cache)
        if samples is not None:
            self.fingerprint = xxhash.xxh3_64_hexdigest(f"{self.fingerprint} grouped".encode())
            self.notes += (
                f"{int(self._first_G[-1]):_} rows are {len(samples):_} images, each with all of its "
                "captions; data.group_rows=False keeps a sample for each row",
            )
        return samples

    def _hashes(self, groups: Sequence[int], sizes: list[int]) -> np.ndarray:
        """A hash of the image of each row of some row groups, of which few are in memory at once."""
        at_once = COMPARED_AT_ONCE // max(1, *(sizes[group] for group in groups), 1)
        shown = {"total": len(groups), "unit": "row group", "disable": None}
        with concurrent.futures.ThreadPoolExecutor(min(OPENED_AT_ONCE, max(1, at_once))) as pool:
            parts = list(
                tqdm.tqdm(pool.map(self._hashes_of, groups), **shown, desc="Comparing images")
            )
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def _hashes_of(self, group: int) -> np.ndarray:
        file, number = self._groups_G2[group].tolist()
        path, label = self._paths[file], self._label

        def read() -> list[np.ndarray]:
            batches = open_file(path).iter_batches(
                HASHED_AT_ONCE, row_groups=[number], columns=self._wanted
            )
            return [
                parquet_types.image_hashes(
                    batch, self._image, self._captions, label and batch[label]
                )
                for batch in batches
            ]

        try:
            parts = storage.retry(lambda: or_damaged(read, path, number), path)
            return np.concatenate([np.empty(0, np.uint64), *parts])
        except DamagedGroup:
            return np.zeros(int(self._first_G[group + 1] - self._first_G[group]), np.uint64)

    def _find_labels(self, schema: pa.Schema, given: str | None):
        """The label column, and names of the classes out of the files or from beside them."""
        self.classes, self._label_of = None, labels.parse_label
        self._label = columns.find_label(given, schema.names, where=self._paths[0])
        if self._label is None:
            return
        kind = schema.field(self._label).type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):  # of gaps pandas makes NaN
            found = labels.hugging_face_names(schema.metadata, self._label)
            self.classes = found or labels.class_names(self._paths[0].rpartition("/")[0])
        elif given is None:
            self.notes += (labels.unread(self._label, kind),)
            self._label = None
        elif parquet_types.is_text(kind):
            columns_of_files = (open_file(path).read([given])[given] for path in self._paths)
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
                table = storage.retry(lambda: read_group(path, number, self._wanted), path)
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

    def _look_at_first_rows(self, path: str):
        """The captions must not all be numbers or objects that are written out, nor all images be missing."""
        images = first_rows(path, [self._image], image_files.PROBED)
        image_files.refuse_unless_there([image_value(row[self._image]) for row in images], path)
        tops = self._captions.tops(self._wanted)
        try:
            first = first_rows(path, tops, columns.CHECKED) if tops else ()
            found = [self._captions.texts(row) for row in first]
        except (UnicodeDecodeError, columns.NotText):
            return  # bad samples, which are counted when they are read
        for place, name in enumerate(self._captions.names):
            texts = (text for row in found for text in row[place])
            columns.refuse_numbers(texts, name, where=path)

    def _warn(self, schema: pa.Schema, sizes: list[int]):
        if not parquet_types.is_text(schema.field(self._image).type) and sum(sizes) > CACHE_BYTES:
            logging.warning(
                "%s has %.1f GB in row groups of %.0f MB, and a shuffled order decodes a whole one "
                "for almost each sample. `clip-jax data convert` makes it fast.",
                self.name, sum(sizes) / 1e9, max(sizes) / 1e6,
            )  # fmt: skip


def open_source(location: str, split: Split, cfg: DataConfig) -> ParquetSource:
    """The files that the pattern `location` names, or all of a folder."""
    name = f"parquet:{location}"
    paths, others = expand_folder(location, ENDINGS)
    paths, left_out = splits.choose(paths, split, name=name)
    source = ParquetSource(paths, name=name, cfg=cfg, training=split == "train")
    source.notes += tuple(note for note in (left_out, others) if note)
    return source


def index(location: str, cfg: DataConfig, *, workers: int | None = None) -> str:
    """Compare all images, however many bytes they are, so that rows of one image are one sample."""
    paths, _ = splits.choose(
        expand_folder(location, ENDINGS)[0], "train", name=f"parquet:{location}"
    )
    source = ParquetSource(paths, name=f"parquet:{location}", cfg=cfg, training=False, whole=True)
    return "\n".join((f"{source.name}: {len(source):_} samples", *source.notes))


def has_test_split(location: str, cfg: DataConfig) -> bool:
    """Whether the names of the files tell training from test, as Hugging Face's do."""
    return splits.has_test(expand_folder(location, ENDINGS)[0])


FORMAT = SourceFormat(open_source, has_test_split, index)

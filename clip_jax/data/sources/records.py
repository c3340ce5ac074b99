"""ArrayRecord files of image-caption pairs, each record a tf.train.Example; what `convert` writes."""

import concurrent.futures
import functools
import os
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xxhash
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.block_cache import Span
from clip_jax.data.block_order import Blocks
from clip_jax.data.samples import BadSample, Sample, SourceFormat, Split
from clip_jax.data.sources import columns, record_chunks, splits
from clip_jax.data.sources.patterns import expand
from clip_jax.data.sources.record_blocks import RecordBlocks, RecordRun
from clip_jax.storage.json_text import parse_json

MANIFEST = "manifest.json"  # beside the files: what `convert` wrote
SUFFIX = ".array_record"
NUMBERED = re.compile(r"(?P<set>.*?)\d{5}-of-(?P<count>\d{5})(?P<rest>.*)")
CHECKED = 3  # files behind URLs whose first record is looked at
PROBED = 20


def encode(sample: Sample) -> bytes:
    """A sample as a record: features image, caption, and where there are any caption_prob, label."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(sample.image)
    feature["caption"].bytes_list.value.extend(text.encode() for text in sample.captions)
    feature["key"].bytes_list.value.append(sample.key.encode())
    if sample.caption_probs is not None:
        feature["caption_prob"].float_list.value.extend(sample.caption_probs)
    if sample.label is not None:
        feature["label"].int64_list.value.append(sample.label)
    return example.SerializeToString()


class Whole(NamedTuple):
    """Tells the reader that it is to take all of a file, so that it need not open it first."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class RecordsSource:
    """Records of several files, in the files' order."""

    def __init__(
        self,
        paths: list[str],
        *,
        name: str,
        image_column: str | None = None,
        caption_column: str | None = None,
        classes: tuple[str, ...] | None = None,
        templates: tuple[str, ...] | None = None,
        notes: tuple[str, ...] = (),
        entries: dict[str, dict] | None = None,
    ):
        entries = entries or {}
        self._again = functools.partial(
            RecordsSource,
            paths,
            name=name,
            image_column=image_column,
            caption_column=caption_column,
            classes=classes,
            templates=templates,
            notes=notes,
            entries=entries,
        )
        self.name, self._paths, self.classes, self.templates = name, paths, classes, templates
        self.remote, infos = storage.is_url(paths[0]), storage.stat(paths)
        if self.remote:
            self._data = RecordBlocks(
                paths, infos, [entries.get(os.path.basename(path), {}) for path in paths]
            )
            counts = self._data.counts
        else:
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                counts = list(pool.map(_count, paths))
            self._data = _local(paths, counts)
        self._first_S = np.cumsum([0, *counts])
        self._length = int(self._first_S[-1])
        self._image, self._captions = "image", columns.CaptionColumns(("caption",), None)
        self.notes = notes
        if self._length:
            names = self._check_records(counts)
            self._image = columns.find_column(
                "image", image_column, columns.IMAGE_NAMES, names, where=paths[0]
            )
            self._captions = columns.find_captions(caption_column, names, where=paths[0])
            self.notes += columns.unread(self._captions, caption_column, names)
            first = [self._texts(index) for index in range(min(PROBED, self._length))]
            for place, column in enumerate(self._captions.names):
                texts = (text for row in first for text in row[place])
                columns.refuse_numbers(texts, column, where=paths[0])
        digest = xxhash.xxh3_64()
        for path, info in zip(paths, infos):
            digest.update(f"{os.path.basename(path)} {info.size}".encode())
        self.fingerprint = digest.hexdigest()

    def _check_records(self, counts: list[int]) -> list[str]:
        """The features of the first record; refuses files of which the first is none of ours.

        One that is damaged is counted when it is trained on. Behind a URL, where each costs a block,
        a few files stand for all.
        """
        names: list[str] = []
        filled = [entry for entry in zip(self._paths, self._first_S, counts) if entry[2]]
        for path, first, _ in filled[: CHECKED if self.remote else None]:
            try:
                record = self._data[int(first)]
            except OSError:  # of the storage: it says nothing of the record
                raise
            except Exception:  # ArrayRecord checks its chunks and has no exception type of its own
                continue
            try:
                found = sorted(tf_example_pb2.Example.FromString(record).features.feature)
            except DecodeError:
                found = []
            if not found:
                raise ValueError(
                    f"{path}: its records are no tf.train.Example (the first starts with "
                    f"{record[:12]!r}); write them as such, or convert the data they come from"
                )
            names = names or found
        return names

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self.parse(index, lambda: self._data[index])

    @property
    def blocks(self) -> Blocks | None:
        """Runs of records behind a URL that are read in one piece; files on a disk are read at random."""
        return self._data.blocks if isinstance(self._data, RecordBlocks) else None

    def span(self, start: int, end: int) -> Span:
        """Where samples `start` to `end` are, which lie in one block."""
        assert isinstance(self._data, RecordBlocks)
        return self._data.span(start, end)

    def unpack(self, start: int, end: int, data: bytes | bytearray) -> RecordRun:
        """These samples, of the bytes of their span."""
        assert isinstance(self._data, RecordBlocks)
        return RecordRun(self.parse, start, self._data.unpack(start, end, data))

    def parse(self, index: int, record: Callable[[], bytes]) -> Sample:
        """A sample of its record, which fails to come where it is damaged."""
        file = int(np.searchsorted(self._first_S, index, side="right")) - 1
        shard = os.path.basename(self._paths[file])
        key = f"{shard}/{index - self._first_S[file]}"
        try:
            features = _features(record())
        except OSError:  # of the storage: it says nothing of the record
            raise
        except Exception as error:
            # ArrayRecord checks its chunks and has no exception type of its own.
            raise BadSample("unreadable-record", key=key, shard=shard) from error
        try:
            captions, probs = self._captions.choose(self._captions.texts(_lists(features)))
        except UnicodeDecodeError as error:
            raise BadSample("caption-not-utf8", key=key, shard=shard) from error
        except columns.NotText as error:
            raise BadSample("caption-not-text", key=key, shard=shard) from error
        image = features[self._image].bytes_list.value if self._image in features else ()
        if not image or not image[0]:
            raise BadSample("missing-image", key=key, shard=shard)
        if not captions:
            raise BadSample("missing-caption", key=key, shard=shard)
        own = features["caption_prob"].float_list.value if "caption_prob" in features else ()
        if len(own) == len(captions) and self._captions.weights is None:
            probs = tuple(value / sum(own) for value in own)
        label = features["label"].int64_list.value if "label" in features else ()
        return Sample(
            image=image[0],
            captions=captions,
            key=key,
            shard=shard,
            label=int(label[0]) if label else None,
            caption_probs=probs,
        )

    def _texts(self, index: int) -> list[list[str]]:
        try:
            return self._captions.texts(_lists(_features(self._data[index])))
        except columns.NotText as error:
            name = ",".join(self._captions.names)
            raise ValueError(error.message(name, where=self._paths[0])) from error
        except Exception:  # a damaged record, which is counted when it is trained on
            return [[] for _ in self._captions.names]

    def __reduce__(self):
        if self.remote:
            return _from_state, (self.__dict__,)  # what was read from the files' ends is kept
        return self._again, ()


def _from_state(state: dict) -> RecordsSource:
    source = object.__new__(RecordsSource)
    source.__dict__.update(state)
    return source


def _local(paths: list[str], counts: list[int]) -> ArrayRecordDataSource:
    # Offsets stay in the files: in memory they would take eight bytes a record.
    return ArrayRecordDataSource(
        [Whole(path, 0, count, count) for path, count in zip(paths, counts)],
        reader_options={"index_storage_option": "offloaded", "footer_prefetch_bytes": "0"},
    )


def open_source(location: str, split: Split, cfg: DataConfig) -> RecordsSource:
    """The files that the pattern `location` names, or all of a folder; or of one split."""
    name = f"records:{location}"
    folder = storage.is_folder(location)
    paths, left_out = splits.choose(_expand(location), split, name=name)
    manifest = read_manifest(os.path.dirname(paths[0]))
    check_files(paths, manifest, name=name, whole=folder)
    names = (manifest.get(key) for key in ("classes", "templates"))
    classes, templates = (tuple(texts) if texts else None for texts in names)
    return RecordsSource(
        paths,
        name=name,
        image_column=cfg.image_column,
        caption_column=cfg.caption_column,
        classes=classes,
        templates=templates,
        notes=(left_out,) * bool(left_out),
        entries={entry["name"]: entry for entry in manifest.get("shards", ())},
    )


def has_test_split(location: str, cfg: DataConfig) -> bool:
    """Whether the names of the files tell training from test."""
    return splits.has_test(_expand(location))


def _expand(location: str) -> list[str]:
    folder = storage.is_folder(location)
    return expand(f"{location.rstrip('/')}/*{SUFFIX}*" if folder else location)


def _features(record: bytes) -> dict:
    return tf_example_pb2.Example.FromString(record).features.feature


def _lists(features) -> dict:
    """Features as lists of their values, so that numbers are seen as numbers."""
    kinds = ("bytes_list", "float_list", "int64_list")
    return {
        name: [value for kind in kinds for value in getattr(feature, kind).value]
        for name, feature in features.items()
    }


def _count(path: str) -> int:
    try:
        reader = ArrayRecordReader(path)
        count = reader.num_records()
        reader.close()
    except Exception as error:  # the C++ library's errors have no type of their own
        raise record_chunks.not_whole(path) from error
    return count


def read_manifest(folder: str) -> dict:
    """What `convert` wrote beside the files; empty where it did not write them."""
    path = f"{folder or '.'}/{MANIFEST}"
    if not storage.is_file(path):
        return {}
    try:
        return parse_json(storage.read_file(path))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON; copy or convert the data again") from error


def check_files(paths: list[str], manifest: dict, *, name: str, whole: bool):
    """Refuse files that are not as long as the manifest says, or, of a `whole` folder, not all."""
    expected = {entry["name"]: entry["size"] for entry in manifest.get("shards", ())}
    found = {os.path.basename(path): path for path in paths}
    if whole and manifest:
        _refuse(name, "lacks", sorted(expected.keys() - found.keys()), f"its {MANIFEST} names")
        extra = sorted(found.keys() - expected.keys())
        _refuse(name, "has", extra, f"its {MANIFEST} does not name")
    elif whole:
        _refuse_part_of_a_set(name, sorted(found))
    for path, info in zip(paths, storage.stat(paths)):
        size = expected.get(os.path.basename(path), info.size)
        if info.size != size:
            raise ValueError(
                f"{name}: {path} has {info.size} bytes and should have {size} ({MANIFEST}); copy or "
                "convert it again"
            )


def _refuse_part_of_a_set(name: str, names: list[str]):
    """Files that call themselves so many "-of-" so many are all there, and of one set."""
    counts: dict[tuple[str, str], set[str]] = {}
    for parts in filter(None, map(NUMBERED.fullmatch, names)):
        counts.setdefault((parts["set"], parts["rest"]), set()).add(parts["count"])
    for (start, rest), (count, *others) in counts.items():
        if others:
            raise ValueError(
                f"{name} has files of several sets, -of-{' and -of-'.join(sorted([count, *others]))}; "
                "keep those of one, or name them by a pattern"
            )
        expected = {f"{start}{number:05}-of-{count}{rest}" for number in range(int(count))}
        _refuse(name, "lacks", sorted(expected.difference(names)), "belong to the others")


def _refuse(name: str, fault: str, files: list[str], why: str):
    if files:
        shown = ", ".join(files[:3]) + (", ..." if len(files) > 3 else "")
        raise ValueError(
            f"{name} {fault} {len(files)} files that {why}: {shown}. Copy or convert the data again "
            "into an empty folder, or name the files by a pattern"
        )


FORMAT = SourceFormat(open_source, has_test_split)

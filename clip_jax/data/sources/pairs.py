"""Your own images: a CSV, TSV or JSONL file with an image path and a caption in each row."""

import csv
import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO

import xxhash

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample, Sample, SourceFormat
from clip_jax.data.sources import columns, labels
from clip_jax.data.sources.image_files import read_image
from clip_jax.data.sources.packed_strings import PackedStrings

Opener = Callable[[], BinaryIO]

DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
PROBED = 10  # image paths of which one must exist


class PairsSource:
    """Rows of a caption file, a path or a URL. Relative images start at the folder of the file."""

    templates = None

    def __init__(
        self,
        path: str,
        *,
        image_column: str | None,
        caption_column: str | None,
        label_column: str | None = None,
        training: bool = True,
    ):
        self._training = training
        self._folder, _, self._file = path.rpartition("/")
        self.name = f"pairs:{path}"
        opened = _opener(path)
        digest = xxhash.xxh3_64()
        with opened() as file:
            while block := file.read(1 << 24):
                digest.update(block)
        self.fingerprint = digest.hexdigest()
        rows = _read(path, opened)
        names = next(rows)
        image = columns.find_column("image", image_column, columns.IMAGE_NAMES, names, where=path)
        label = columns.find_label(label_column, names, where=path)
        self._columns = columns.find_captions(
            caption_column, names, where=path, optional=label is not None
        )
        self._images, self._captions = PackedStrings(), PackedStrings()
        self._labels = labels.RowLabels(asked=label_column is not None)
        for row in rows:
            self._images.append(str(row.get(image) or ""))
            self._captions.append(_join(self._columns.texts(row)))
            if label is not None:
                self._labels.append(row.get(label))
        self._labels.close()
        if not len(self):
            raise ValueError(f"{path} names its columns but has no rows")
        first = [_split(self._captions[i]) for i in range(min(columns.CHECKED, len(self)))]
        for place, name in enumerate(self._columns.names):
            texts = (text for row in first for text in row[place])
            columns.refuse_numbers(texts, name, where=path)
        self._probe(path)
        self.classes = None
        if label is not None:
            self._find_classes(label)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        key, shard = f"{self._file}/{index + 1}", self._file
        captions, probs = self._columns.choose(_split(self._captions[index]))
        label = self._labels[index]
        captions = captions or labels.stand_in(label, self.classes, training=self._training)
        if not captions:
            raise BadSample("missing-caption", key=key, shard=shard)
        image = self._images[index]
        if not image:
            raise BadSample("missing-image", key=key, shard=shard)
        key = f"{key} {image}"  # the row and the file: either is what a person looks for
        data = read_image(self._resolve(image), key=key, shard=shard)
        return Sample(
            image=data, captions=captions, key=key, shard=shard, label=label, caption_probs=probs
        )

    def _find_classes(self, column: str):
        captioned = bool(self._columns.names)
        if self._labels:
            self.classes = self._labels.classes or labels.class_names(self._folder or ".")
            labels.check_names(self, training=self._training, captioned=captioned)
        elif not captioned:
            found = f"has {self._labels.odd[:40]!r} in it" if self._labels.odd else "is empty"
            raise ValueError(
                f"{self.name} has no column that is known to hold the caption, and its column "
                f"{column!r} {found}, which is no label. Name the right ones with "
                f"data.caption_column, or data.label_column where it holds names of classes"
            )

    def _resolve(self, image: str) -> str:
        absolute = storage.is_url(image) or os.path.isabs(image)
        return image if absolute or not self._folder else f"{self._folder}/{image}"

    def _probe(self, path: str):
        first = [self._images[index] for index in range(min(PROBED, len(self)))]
        if not any(image and storage.is_file(self._resolve(image)) for image in first):
            raise FileNotFoundError(
                f"{path}: none of its first {len(first)} images is there; the first is "
                f"{first[0]!r}, looked for at {self._resolve(first[0])}. Relative paths start at "
                "the folder of the file"
            )


def open_source(location: str, split: str, cfg: DataConfig) -> PairsSource:
    """The rows of the file at `location`; it has no splits."""
    path = location if storage.is_url(location) else os.path.expanduser(location)
    if not storage.is_file(path):
        kind = "is a folder" if os.path.isdir(path) else "is not there"
        raise FileNotFoundError(f"the caption file {path} {kind} (data.source 'pairs:{location}')")
    if _suffix(path) not in (*DELIMITERS, *LINES):
        raise ValueError(
            f"{path}: a caption file ends in {', '.join((*DELIMITERS, *LINES))}, so that its "
            "format is known"
        )
    return PairsSource(
        path,
        image_column=cfg.image_column,
        caption_column=cfg.caption_column,
        label_column=cfg.label_column,
        training=split == "train",
    )


def _join(texts: list[list[str]]) -> str:
    """The captions of each column of a row in one string; white space in them is plain spaces."""
    return "\n".join("\t".join(column) for column in texts)


def _split(joined: str) -> list[list[str]]:
    return [column.split("\t") if column else [] for column in joined.split("\n")]


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _opener(path: str) -> Opener:
    """Opens the caption file, in bytes. One behind a URL is small beside its images: it is read once."""
    if not storage.is_url(path):
        return functools.partial(open, path, "rb")
    return functools.partial(io.BytesIO, storage.read_whole(path))


def _text(opened: Opener, *, newline: str | None = None):
    return io.TextIOWrapper(opened(), encoding="utf-8-sig", newline=newline)


def _read(path: str, opened: Opener) -> Iterator:
    """The names of the columns, then each row as a dictionary."""
    with opened() as file:
        if not file.read(1):
            raise ValueError(
                f"{path} is empty; it must hold an image path and a caption in each row"
            )
    try:
        if _suffix(path) in LINES:
            yield from _read_json_lines(path, opened)
        else:
            yield from _read_delimited(path, opened, DELIMITERS[_suffix(path)])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def _read_delimited(path: str, opened: Opener, delimiter: str) -> Iterator:
    csv.field_size_limit(1 << 27)  # the default of 128 kB is refused with a riddle
    with _text(opened, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            names = [name.strip() for name in next(reader)]
            yield names
            yield from (dict(zip(names, row)) for row in reader if row)
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num}: {error}") from error


def _read_json_lines(path: str, opened: Opener) -> Iterator:
    names = None
    with _text(opened) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} is not a JSON object: {line.strip()[:60]}")
            if names is None:
                names = list(row)
                yield names
            yield row
    if names is None:
        raise ValueError(f"{path} is empty; it must hold a JSON object in each line")


FORMAT = SourceFormat(open_source)

"""Your own images: a list in a file, with an image path and a caption in each row."""

import os
from pathlib import Path

import xxhash

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample, Sample, SourceFormat, Split
from clip_jax.data.sources import annotations, columns, image_files, labels
from clip_jax.data.sources.list_format import (
    DELIMITED,
    LINES,
    as_utf8,
    encoded_otherwise,
    json_lines,
    read_format,
)
from clip_jax.data.sources.list_index import cache_folder, content_digest, local_copy, open_index
from clip_jax.data.sources.list_scan import Wanted, captions_of, label_text, plain_path

LAYOUTS = (".json", ".token")  # of files that are turned into rows first


class PairsSource:
    """Rows of a caption file, a path or a URL. Relative images start at the folder of the file.

    Rows with the same image are one sample with all of their captions, in the order of their first
    rows (`data.group_rows`).
    """

    templates = None

    def __init__(self, path: str, *, cfg: DataConfig, split: Split):
        self._training = split == "train"
        self._folder, _, self._file = path.rpartition("/")
        self.name = f"pairs:{path}"
        cache = cache_folder(cfg.data_dir)
        local, self.fingerprint, left_out = _in_utf8(path, cfg, split, cache)
        self._format = read_format(local, path, cfg)
        names = self._format.names
        self._image = columns.find_column(
            "image", cfg.image_column, columns.IMAGE_NAMES, names, where=path
        )
        self._label = columns.find_label(cfg.label_column, names, where=path)
        self._columns = columns.find_captions(
            cfg.caption_column, names, where=path, optional=self._label is not None
        )
        if self._format.separator is not None:
            for name in self._columns.names:  # a field of an object is in JSON alone
                columns.find_column("caption", name, (), names, where=path)
        group = cfg.group_rows and bool(self._columns.names)
        wanted = Wanted(self._image, self._columns, self._label, group)
        self._index = open_index(local, self.fingerprint, self._format, wanted, cache)
        info = self._index.info
        if info["grouped"]:  # the order is another one, so that a run cannot resume without a word
            self.fingerprint = xxhash.xxh3_64_hexdigest(f"{self.fingerprint} grouped".encode())
        self.notes = tuple(_notes(info, len(self), left_out))
        self.notes += columns.unread(self._columns, cfg.caption_column, names)
        self._labels = labels.ListLabels(info["labels"], asked=cfg.label_column is not None)
        if not len(self):
            raise ValueError(f"{path} names its columns but has no rows")
        self._refuse_numbers(path)
        self._folders = _image_folders(self._folder, self._file, cfg)
        self._probe(path)
        self.classes = None
        if self._label is not None:
            self._find_classes(self._label)
        if self._labels.odd:
            self.notes += (labels.unread(self._label, self._labels.odd),)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        key, shard = f"{self._file}/{index + 1}", self._file
        image, label, captions, probs = self._read(index)
        captions = captions or labels.stand_in(label, self.classes, training=self._training)
        if not captions:
            raise BadSample(
                "missing-caption", key=f"{key} {(image or '')[:200]}".strip(), shard=shard
            )
        if not image:
            raise BadSample("missing-image", key=key, shard=shard)
        key = f"{key} {image[:200]}"  # the row and the file: either is what a person looks for
        path = self._resolve(image)
        return Sample(
            image=image_files.read_image(path, key=key, shard=shard),
            captions=captions,
            key=key,
            shard=shard,
            label=label,
            caption_probs=probs,
            path=path,
        )

    def _read(self, index: int) -> tuple[str | None, int | None, tuple[str, ...], tuple | None]:
        """Image, label, captions and their probabilities out of the rows of a sample."""
        image, label, captions, probs = None, None, [], []
        for number, lines in enumerate(self._index.rows(index)):
            row, _ = self._format.row(lines, 0)
            if number == 0:
                image = _path(row.get(self._image))
                label = self._labels[label_text(row.get(self._label))] if self._label else None
            elif _path(row.get(self._image)) != image:
                continue  # another image whose name has the same hash
            if self._format.separator is not None and len(row) < len(self._format.names):
                continue  # which fields are missing, nobody knows
            texts, shares = self._columns.choose(captions_of(row, self._columns, where=self.name))
            captions += texts
            probs += shares or ()
        total = sum(probs)
        return image, label, tuple(captions), tuple(p / total for p in probs) if probs else None

    def _refuse_numbers(self, path: str):
        """Of the first rows, the captions must not all be numbers."""
        count = min(columns.CHECKED, len(self))
        rows = (self._format.row(self._index.rows(i)[0], 0)[0] for i in range(count))
        found, odd = [], None
        for row in rows:
            try:
                found.append(self._columns.texts(row))
            except columns.NotText as error:
                odd = error
        if odd is not None and not any(map(any, found)):
            raise ValueError(odd.message(",".join(self._columns.names), where=path))
        for place, name in enumerate(self._columns.names):
            texts = (text for row in found for text in row[place])
            columns.refuse_numbers(texts, name, where=path)

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
        return image if absolute or not self._folders[0] else f"{self._folders[0]}/{image}"

    def _probe(self, path: str):
        """Find the folder that the images' paths start at, of those that are usual."""
        first = [self._read(index)[0] for index in range(min(image_files.PROBED, len(self)))]
        tried = self._folders
        for folder in tried:
            self._folders = (folder,)
            if image_files.has_one(first, self._resolve):
                return
        self._folders = tried[:1]
        value = self._format.row(self._index.rows(0)[0], 0)[0].get(self._image)
        if first[0] is None and value is not None:
            raise ValueError(
                f"{path}: the image column {self._image!r} holds {type(value).__name__}, not paths; name "
                "the right one with data.image_column"
            )
        image_files.refuse_base64(first[0], where=path, inside="list")
        mend = f", or at data.image_folder; data.image_column names another column than {self._image!r}"
        raise image_files.none_there(first, where=path, folder=self._folders[0], mend=mend)


def open_source(location: str, split: Split, cfg: DataConfig) -> PairsSource:
    """The rows of the file at `location`; only Karpathy's layout has splits."""
    path = location if storage.is_url(location) else os.path.expanduser(location)
    if not storage.is_file(path):
        storage.refuse_unless_missing(path)
        kind = "is a folder" if os.path.isdir(path) else "is not there"
        raise FileNotFoundError(f"the caption file {path} {kind} (data.source 'pairs:{location}')")
    known = (*DELIMITED, *LINES, *LAYOUTS)
    if _suffix(path) not in known:
        raise ValueError(
            f"{path}: a caption file ends in {', '.join(known)}, so that its format is known"
        )
    return PairsSource(path, cfg=cfg, split=split)


def has_test_split(location: str, cfg: DataConfig) -> bool:
    """Whether it is a file of Karpathy's layout, which says the split of each image."""
    path = os.path.expanduser(location)
    if _suffix(path) != ".json" or not storage.is_file(path):
        return False
    return bool(annotations.test_split(annotations.splits_of_json(storage.read_file(path))))


def _in_utf8(path: str, cfg: DataConfig, split: Split, cache: Path) -> tuple[str, str, str | None]:
    """A list on this disk in UTF-8, the fingerprint of its content, and a note on skipped rows."""
    suffix = _suffix(path)
    if not storage.is_url(path) and suffix not in LAYOUTS:
        with open(path, "rb") as file:
            start = file.read(4)
        if encoded_otherwise(start, cfg) is None:
            return path, content_digest(path, cache), None
    data = storage.read_file(path)
    fingerprint, left_out = xxhash.xxh3_64_hexdigest(data), None
    if (encoding := encoded_otherwise(data[:4], cfg)) is not None:
        data = as_utf8(data, encoding, path)
    if suffix == ".json":
        rows, left_out = annotations.rows_of_json(data, path, split)
        data, suffix = json_lines(rows), ".jsonl"
    elif suffix == ".token":
        data, suffix = json_lines(annotations.rows_of_token(data, path)), ".jsonl"
    return local_copy(path, data, suffix, cache), fingerprint, left_out


def _notes(info: dict, samples: int, left_out: str | None) -> list[str]:
    """What a person should know of how the rows became samples."""
    notes = [left_out] if left_out else []
    if info["grouped"]:
        notes.append(
            f"{info['rows']:_} rows are {samples:_} images, each with all of its captions; "
            "data.group_rows=False keeps a sample for each row"
        )
    if info["short"]:
        notes.append(
            f"{info['short']:_} rows have fewer fields than the header, the first in line "
            f"{info['first_short']}; they count as bad samples"
        )
    return notes


def _image_folders(folder: str, file: str, cfg: DataConfig) -> tuple[str, ...]:
    """Where relative paths may start, the best first; COCO's annotations lie beside its images."""
    if cfg.image_folder is not None:
        return (os.path.expanduser(cfg.image_folder).rstrip("/"),)
    if _suffix(file) not in LAYOUTS:
        return (folder,)
    above = folder.rpartition("/")[0] if "/" in folder else f"{folder or '.'}/.."
    set_name = os.path.splitext(file)[0].rpartition("_")[2]  # captions_val2017.json
    inside = [
        f"{place or '.'}/{name}" for place in (folder, above) for name in ("images", set_name)
    ]
    return (folder, *inside, above)


def _path(value) -> str | None:
    """The path of an image out of a row's value, which may be an object that holds it."""
    if isinstance(value, dict):
        value = value.get("path") or value.get("file_name")
    return plain_path(value) if isinstance(value, str) else None


def _suffix(path: str) -> str:
    """What the format is known by; Flickr8k's list of captions is called Flickr8k.token.txt."""
    path = path.lower()
    return os.path.splitext(path.removesuffix(".txt") if path.endswith(".token.txt") else path)[1]


FORMAT = SourceFormat(open_source, has_test_split=has_test_split)

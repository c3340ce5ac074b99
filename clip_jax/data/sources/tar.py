"""Tar shards as img2dataset and webdataset write them, read at random through an index."""

import json
import os
from pathlib import Path

from absl import logging

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.samples import BadSample, Sample, SourceFormat
from clip_jax.data.sources import columns, labels
from clip_jax.data.sources.tar_index import IMAGE_EXTENSIONS, TarIndex, build_index, open_index
from clip_jax.data.sources.tar_members import members, split_name

TEXT = "txt"  # the member that `data.caption_column` means by this name
LABEL = "cls"  # the member with the number of the class
PROBED = 200  # samples of which a caption must be text
ENOUGH = 20  # usable ones among them
NAMED_BY = {
    "image": "data.image_column names the extension of the members with images",
    "caption": "data.caption_column names a field of the .json members, or txt",
}


class TarSource:
    """The samples of tar shards, in the order in which they lie there.

    A sample is read whole, in one piece, and taken apart by its own headers. Its captions are its
    .txt member or fields of its .json; its label, if it has one, is its .cls.
    """

    classes = None
    templates = None

    def __init__(
        self,
        index: TarIndex,
        *,
        name: str,
        image_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        training: bool = True,
    ):
        self.name, self._index = name, index
        self._label_name, self._training = (label_column or LABEL).lower(), training
        self.fingerprint = index.fingerprint
        self._images = (image_column.lower(),) if image_column else IMAGE_EXTENSIONS
        self._columns = None
        if caption_column is not None and caption_column != TEXT:
            self._columns = columns.parse_caption_columns(caption_column)
        self._refuse_what_cannot_be_trained_on(caption_column)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(index, training=self._training)

    def _read(self, index: int, *, training: bool) -> Sample:
        shard, start, end = self._index.locate(index)
        path = self._index.paths[shard]
        shard_name = os.path.basename(path)
        data = storage.read_range(path, start, end)
        key, parts, damaged = _take_apart(data)
        key = f"{shard_name}/{key or start}"
        row = _json(parts)
        captions, probs = self._captions(parts, row)
        label = labels.parse_label(parts.get(self._label_name, row.get(self._label_name)))
        captions = captions or labels.stand_in(label, self.classes, training=training)
        image = self._image(parts)
        if image is None or not captions:
            reason = "missing-caption" if image is not None else "missing-image"
            raise BadSample(damaged or reason, key=key, shard=shard_name)
        return Sample(
            image=image,
            captions=captions,
            key=key,
            shard=shard_name,
            label=label,
            caption_probs=probs,
        )

    def _image(self, parts: dict[str, bytes]) -> bytes | None:
        """The member whose whole extension is an image's, or else whose last part is."""
        whole = (name for name in self._images if name in parts)
        last = (name for name in parts if name.rpartition(".")[2] in self._images)
        return next((parts[name] for name in (*whole, *last)), None)

    def _captions(self, parts: dict[str, bytes], row: dict) -> tuple[tuple[str, ...], tuple | None]:
        text = parts.get(TEXT)
        if self._columns is None:
            if text is not None and text.strip():
                return (" ".join(text.decode("utf-8", "replace").split()),), None
            name = next((name for name in columns.CAPTION_NAMES if row.get(name)), None)
            found = columns.CaptionColumns((name,), None) if name else None
            return found.choose(found.texts(row)) if found else ((), None)
        row = {TEXT: text, **row}
        return self._columns.choose(self._columns.texts(row))

    def _refuse_what_cannot_be_trained_on(self, caption_column: str | None):
        shards = list(zip(self._index.paths, self._index.shards))
        damaged = [f"{path} at byte {shard.damage[0]}" for path, shard in shards if shard.damage]
        if damaged:
            logging.warning(
                "%d of %d tar shards are damaged: %s",
                len(damaged),
                len(shards),
                "; ".join(damaged[:5]),
            )
        if not len(self):
            raise ValueError(f"{self.name}: no tar shard has a sample in it")
        if set(self._images) <= set(IMAGE_EXTENSIONS):  # others the index has not counted
            self._refuse_shards_without("images")
        samples = self._probe()
        captions = [text for sample in samples for text in sample.captions if text]
        if any(sample.label is not None for sample in samples):
            folder = os.path.dirname(self._index.paths[0])
            self.classes = labels.class_names(folder)
            labels.check_names(self, training=self._training, captioned=bool(captions))
            if not captions:
                return
        self._refuse_shards_without("captions")
        columns.refuse_numbers(captions, caption_column or "caption", where=self._index.paths[0])

    def _refuse_shards_without(self, what: str):
        shards = list(zip(self._index.paths, self._index.shards))
        empty = [path for path, shard in shards if shard.samples and not getattr(shard, what)]
        if empty:
            raise ValueError(
                f"{self.name}: {len(empty)} of {len(shards)} tar shards have no {what} in them "
                f"({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}). A sample is files "
                "of one name, such as 000.jpg and 000.txt or 000.json; leave these shards out"
            )

    def _probe(self) -> list[Sample]:
        """Some samples that can be used, or with a label alone."""
        samples, bad = [], None
        for place in range(0, len(self), max(1, len(self) // PROBED)):
            try:
                samples.append(self._read(place, training=False))
            except BadSample as error:
                bad = error
            if len(samples) >= ENOUGH:
                break
        missing = bad.reason.removeprefix("missing-") if bad is not None else None
        if not samples and missing in NAMED_BY:
            raise ValueError(
                f"{self.name}: no {missing} was found in any of {min(PROBED, len(self))} samples; the "
                f"last was {bad}. {NAMED_BY[missing]}"
            )
        return samples


def open_source(location: str, split: str, cfg: DataConfig) -> TarSource:
    """The shards that the pattern `location` names; they have no splits."""
    paths = storage.expand(location)
    return TarSource(
        open_index(paths, Path(cfg.data_dir)),
        name=f"tar:{location}",
        image_column=cfg.image_column,
        caption_column=cfg.caption_column,
        label_column=cfg.label_column,
        training=split == "train",
    )


def index(location: str, cfg: DataConfig, *, workers: int | None = None) -> TarIndex:
    """Build the index of the shards that `location` names, or bring an old one up to date.

    Shards that have not changed are not read again. `str()` of the result is for a terminal.
    """
    return build_index(storage.expand(location), Path(cfg.data_dir), workers=workers, again=True)


def _take_apart(data: bytes) -> tuple[str | None, dict[str, bytes], str | None]:
    """Key, contents by extension, and what is wrong with the shard here, if anything."""
    damage: list[int] = []
    key, parts, damaged = None, {}, None
    for member in members(lambda a, b: data[a:b], 0, len(data), on_damage=damage.append):
        name = split_name(member.name)
        if name is None:
            continue
        key = key or name[0]
        if member.data + member.size > len(data):
            damaged = "truncated-tar"
        elif name[0] == key:
            parts[name[1]] = data[member.data : member.data + member.size]
    return key, parts, damaged or ("damaged-tar-header" if damage else None)


def _json(parts: dict[str, bytes]) -> dict:
    try:
        row = json.loads(parts.get("json", b"{}"))
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


FORMAT = SourceFormat(open_source, index=index)

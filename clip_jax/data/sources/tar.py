"""Tar shards as img2dataset and webdataset write them, read at random through an index."""

import functools
import os
import threading
from pathlib import Path

from absl import logging

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.block_cache import Span
from clip_jax.data.block_order import Blocks
from clip_jax.data.images.formats import EXTENSIONS
from clip_jax.data.samples import BadSample, Sample, SourceFormat, Split
from clip_jax.data.sources import columns, labels, splits
from clip_jax.data.sources.members import make_members
from clip_jax.data.sources.tar_counts import TarCounts, open_counts
from clip_jax.data.sources.tar_index import TarIndex, build_index, find_index, open_index
from clip_jax.data.sources.tar_run import TarRun, take_apart
from clip_jax.data.sources.tar_scan import CAPTION_EXTENSIONS
from clip_jax.data.sources.tar_shards import (
    DATASET_TYPE,
    count_lost,
    expand_shards,
    is_retrieval,
)

PROBED = 200  # samples of which a caption must be text
ENOUGH = 20  # usable ones among them
KEPT_SHARDS = 4  # that are read whole for samples out of order
NAMED_BY = {
    "image": "data.image_column names the extension of the members with images",
    "caption": "data.caption_column names a field of the .json members, or the extension of members "
    "with text, such as txt",
}


class TarSource:
    """The samples of tar shards, in the order in which they lie there.

    A sample is read whole, in one piece, and taken apart by its own headers. Its captions are its
    .txt member, or the lines of it, or fields of its .json, or other members with text; its label,
    if it has one, is its .cls.
    """

    classes = None
    templates = None

    def __init__(
        self,
        index: TarIndex | TarCounts,
        *,
        name: str,
        image_column: str | None = None,
        caption_column: str | None = None,
        label_column: str | None = None,
        caption_lines: bool = False,
        training: bool = True,
        notes: tuple[str, ...] = (),
    ):
        self.name, self._index, self.notes = name, index, notes
        self._training = training
        self.fingerprint = index.fingerprint
        self._images = (image_column.lower(),) if image_column else EXTENSIONS
        self._caption_name = caption_column or "caption"
        self._members = make_members(caption_column, label_column, lines=caption_lines)
        self._seen: set[str] = set()  # what is to be said of samples that were probed
        self._open()
        self._refuse_what_cannot_be_trained_on(caption_column)

    def _open(self):
        self._lock, self._shards = threading.Lock(), {}

    def __getstate__(self) -> dict:
        """Without what was read."""
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_lock", "_shards")
        }

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._index)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Runs of samples that are read in one piece."""
        return self._index.blocks()

    @property
    def remote(self) -> bool:
        """Whether each request takes long, so that blocks pay."""
        return storage.is_url(self._index.paths[0])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(index, training=self._training)

    def span(self, start: int, end: int) -> Span:
        """Where samples `start` to `end` are, which lie in one shard."""
        shard, first, last = self._index.span(start, end)
        info = storage.FileInfo(self._index.shards[shard].size, self._index.shards[shard].version)
        return Span(self._index.paths[shard], first, last, info)

    def unpack(self, start: int, end: int, data: bytes | bytearray) -> "TarRun":
        """The samples of these bytes, which are those of their span."""
        shard, byte, _ = self._index.span(start, end)
        first = int(self._index.first_S[shard]) if self._index.whole else start
        return TarRun(
            self.parse,
            os.path.basename(self._index.paths[shard]),
            first,
            byte,
            self._index.borders(start, end, data),
            data,
        )

    def _read(self, index: int, *, training: bool) -> Sample:
        return self._alone(index).sample(index, training=training)

    def _alone(self, index: int) -> "TarRun":
        """A sample that is read for itself, with those of its shard where that is read whole."""
        if not self._index.whole:
            return self._fetch(index, index + 1)
        shard = self._index.span(index, index + 1)[0]
        with self._lock:  # neighbours ask at the same time, and one of them reads
            if shard not in self._shards:
                self._shards[shard] = self._fetch(index, index + 1)
                while len(self._shards) > KEPT_SHARDS:
                    self._shards.pop(next(iter(self._shards)))
            return self._shards[shard]

    def _fetch(self, start: int, end: int) -> "TarRun":
        path, first, last, info = self.span(start, end)
        # What is cut off on a disk is a bad sample, and no reason to stop.
        info = info if self.remote else None
        return self.unpack(start, end, storage.read_range(path, first, last, info=info))

    def parse(self, index: int, start: int, data: bytes, *, training: bool | None = None) -> Sample:
        """A sample of its bytes, which begin at byte `start` of its shard."""
        shard_name = os.path.basename(self._index.paths[self._index.span(index, index + 1)[0]])
        key, parts, damaged = take_apart(data)
        key = f"{shard_name}/{key or start}"
        if training is not None:  # in a probe
            self._seen |= self._members.notes(parts)
        training = self._training if training is None else training
        try:
            captions, probs, label = self._members.read(parts)
        except UnicodeDecodeError as error:
            raise BadSample("caption-not-utf8", key=key, shard=shard_name) from error
        except columns.NotText as error:
            raise BadSample("caption-not-text", key=key, shard=shard_name) from error
        captions = captions or labels.stand_in(label, self.classes, training=training)
        image = self._image(parts)
        if not image or not captions:
            reason = "missing-caption" if image else "missing-image"
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
        """The member whose whole extension is an image's, or else whose last part is.

        Of several it is the one of a text's whole name: of 1.5.png, 1.6.png and 1.6.txt the second.
        """
        whole = (name for name in self._images if name in parts)
        last = (name for name in parts if name.rpartition(".")[2] in self._images)
        split = (name.rpartition(".") for name in parts)
        texts = {stem for stem, _, end in split if end in CAPTION_EXTENSIONS}
        found = sorted((*whole, *last), key=lambda name: name.rpartition(".")[0] not in texts)
        return parts[found[0]] if found else None

    def _refuse_what_cannot_be_trained_on(self, caption_column: str | None):
        shards = list(zip(self._index.paths, self._index.shards))
        unusable = [
            f"{path} {shard.problem or 'is a tar of nothing'}"
            for path, shard in shards
            if not shard.samples
        ]
        if not len(self):
            raise ValueError(
                f"{self.name}: no tar shard has a sample in it: {'; '.join(unusable[:5])}"
            )
        self.lost = count_lost(self._index.shards)
        if unusable:
            said = f"{len(unusable)} of {len(shards)} tar shards cannot be used: " + "; ".join(
                unusable[:20]
            )
            self.notes += (said,)
            logging.warning("%s: %s", self.name, said)
        self._refuse_scattered(shards)
        damaged = [f"{path} at byte {shard.damage[0]}" for path, shard in shards if shard.damage]
        if damaged:
            said = f"{len(damaged)} of {len(shards)} tar shards are damaged: " + "; ".join(
                damaged[:5]
            )
            self.notes += (said,)
            logging.warning("%s: %s", self.name, said)
        if set(self._images) <= set(EXTENSIONS):  # others the index has not counted
            self._refuse_shards_without("images")
        samples = self._probe()
        captions = [text for sample in samples for text in sample.captions if text]
        if any(sample.label is not None for sample in samples):
            folder = os.path.dirname(self._index.paths[0])
            self.classes = labels.class_names(folder)
            labels.check_names(self, training=self._training, captioned=bool(captions))
            if not captions and caption_column is None:
                return
            if not captions:
                raise ValueError(f"{self.name}: no caption was found. {NAMED_BY['caption']}")
        if self._members.columns is None:
            self._refuse_shards_without("captions")
        columns.refuse_numbers(captions, caption_column or "caption", where=self._index.paths[0])

    def _refuse_scattered(self, shards: list):
        found = [(path, shard.scattered) for path, shard in shards if shard.scattered]
        if found:
            path, count = found[0]
            raise ValueError(
                f"{self.name}: in {len(found)} of {len(shards)} tar shards the members of a sample do "
                f"not lie beside each other, as in {path} those of {count}: write them again in the "
                "order of their names, as `tar --sort=name` does"
            )

    def _refuse_shards_without(self, what: str):
        shards = list(zip(self._index.paths, self._index.shards))
        whole = [(path, shard) for path, shard in shards if shard.samples and not shard.damage]
        empty = [path for path, shard in whole if not getattr(shard, what)]
        if empty:
            raise ValueError(
                f"{self.name}: {len(empty)} of {len(shards)} tar shards have no {what} in them "
                f"({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}). A sample is files "
                "of one name, such as 000.jpg and 000.txt or 000.json; leave these shards out"
            )

    def _probe(self) -> list[Sample]:
        """Some samples that can be used, or with a label alone."""
        samples, bad = [], None
        places, read = range(0, len(self), max(1, len(self) // PROBED)), self._read
        if self._index.whole:  # of which the first bytes alone are looked at
            first, data = self._index.beginning()
            run = TarRun(
                self.parse, "", first, 0, self._index.borders(first, first + 1, data), data
            )
            places, read = range(first, first + max(1, len(run) - 1)), run.sample
        for place in places[:PROBED]:
            try:
                samples.append(read(place, training=False))
            except BadSample as error:
                bad = error
            if len(samples) >= ENOUGH:
                break
        self.notes += tuple(sorted(self._seen))
        if not samples and bad is not None and isinstance(bad.__cause__, columns.NotText):
            raise ValueError(bad.__cause__.message(self._caption_name, where=self._index.paths[0]))
        missing = bad.reason.removeprefix("missing-") if bad is not None else None
        if not samples and missing in NAMED_BY:
            raise ValueError(
                f"{self.name}: no {missing} was found in any of {min(PROBED, len(self))} samples; the "
                f"last was {bad}. {NAMED_BY[missing]}"
            )
        return samples


def open_source(location: str, split: Split, cfg: DataConfig) -> TarSource:
    """The shards that the pattern `location` names, or all of a folder."""
    name = f"tar:{location}"
    shards, others = expand_shards(location)
    paths, left_out = splits.choose(shards, split, name=name)
    lines, why = cfg.caption_lines, "data.caption_lines"
    if lines is None:
        lines, why = is_retrieval(os.path.dirname(paths[0])), f"{DATASET_TYPE} says retrieval"
    notes = [note for note in (left_out, others) if note]
    if lines:
        notes.append(f"each line of a member with text is a caption ({why})")
    return TarSource(
        _open_index(paths, cfg),
        name=name,
        image_column=cfg.image_column,
        caption_column=cfg.caption_column,
        label_column=cfg.label_column,
        caption_lines=lines,
        training=split == "train",
        notes=tuple(notes),
    )


def has_test_split(location: str, cfg: DataConfig) -> bool:
    """Whether the names of the shards tell training from test."""
    return splits.has_test(expand_shards(location)[0])


def _open_index(paths: list[str], cfg: DataConfig) -> TarIndex | TarCounts:
    """An index, or where none is needed and none is there, the numbers of samples."""
    cache = Path(cfg.data_dir)
    in_blocks = cfg.shuffle == "block" or (cfg.shuffle == "auto" and storage.is_url(paths[0]))
    if cfg.index == "never" and not in_blocks:
        raise ValueError(
            "data.index=never needs data.shuffle=block: a global order reads at random"
        )
    if cfg.index == "never" or (
        cfg.index == "auto"
        and storage.is_url(paths[0])
        and in_blocks
        and not find_index(paths, cache)
    ):
        counts = open_counts(paths, cache)
        if counts is not None:
            return counts
        if cfg.index == "never":
            raise ValueError(
                f"data.index=never: no file beside {paths[0]} says how many samples the shards have; "
                'write sizes.json ({"00000.tar": 10000, ...}), or let an index be built'
            )
    return open_index(paths, cache)


def index(location: str, cfg: DataConfig, *, workers: int | None = None) -> TarIndex:
    """Build the index of the shards that `location` names, or bring an old one up to date.

    Shards that have not changed are not read again. `str()` of the result is for a terminal.
    """
    paths, _ = splits.choose(expand_shards(location)[0], "train", name=f"tar:{location}")
    return build_index(paths, Path(cfg.data_dir), workers=workers, again=True)


FORMAT = SourceFormat(open_source, has_test_split, index)

"""A row of a batch by its number: which sample, read, decoded, augmented and tokenized."""

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clip_jax.config import DataConfig, PreprocessConfig
from clip_jax.data.block_cache import BlockCache
from clip_jax.data.block_order import BlockOrder, Rows
from clip_jax.data.block_reader import BlockReader
from clip_jax.data.images.transforms import ImageError, TrainCrop, draw_crop, eval_image
from clip_jax.data.orders import GlobalOrder, make_order
from clip_jax.data.samples import BadSample, Sample, Source
from clip_jax.data.shuffle import hash64
from clip_jax.data.tokenizers.base import TokenError

MAX_TRIES = 20  # samples that are tried for one row before the run stops
KEPT_PLANS = 16  # batches whose order is remembered, more than are in work at once

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]  # shapes and types of a batch's arrays


class Tokenizer(Protocol):
    """Texts to token ids, int32 (texts, context_length)."""

    context_length: int

    def __call__(
        self,
        texts: Sequence[str],
        rng: np.random.Generator | None = None,
        mask: str = "truncate",
    ): ...


class Dataset(Protocol):
    """Rows by number: row r of step s is number s x `rows` + r. Threads read several at once."""

    rows: int  # of a batch, of this process

    @property
    def spec(self) -> Spec:
        """Shapes and types of a batch's arrays."""

    def __getitem__(self, number: int) -> dict:
        """The entries of `spec` for one row, and "bad": the bad samples that were met for it."""

    def samples(self, arrays: dict[str, np.ndarray]) -> int:
        """How many samples a batch has, without rows that only fill it up."""

    def release(self, step: int):
        """All rows up to those of `step` have been made."""

    def close(self):
        """Stop what reads ahead."""


class TrainDataset:
    """Row r of this process is row r % b of its part of global batch r // b, b being the part's size.

    What a row holds depends on the seed, the global batch and the place in it, and on nothing
    else: not on processes, threads or what was read before. `skipped` is added to its position in
    the order of samples, which else is the number of those in the batches before.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        cfg: DataConfig,
        *,
        image_size: int,
        preprocess: PreprocessConfig,
        seed: int,
        process_index: int,
        process_count: int,
        skipped: int = 0,
    ):
        if cfg.batch_size % process_count:
            raise ValueError(
                f"data.batch_size={cfg.batch_size} must be a multiple of the {process_count} "
                "processes that share it"
            )
        self.rows = cfg.batch_size // process_count
        self._first, self._skipped = process_index * self.rows, skipped
        self._sources, self._tokenizer, self._cfg = tuple(sources), tokenizer, cfg
        self._image_size, self._seed = image_size, seed
        self._preprocess = with_rotation(preprocess, cfg)
        self._order = make_order(self._sources, cfg, seed=seed)
        if skipped and isinstance(self._order, BlockOrder):
            raise ValueError(
                f"data.batch_size={cfg.batch_size} is not that of the run, and blocks are read in an "
                "order that belongs to it: keep the batch size, or use data.shuffle=global"
            )
        self._memory = cfg.read_ahead_mb * 1_000_000
        self._open()

    def _open(self):
        self._plans: dict[int, Rows] = {}
        self._reader, self._opening = None, threading.Lock()

    def __getstate__(self) -> dict:
        """Without what was read."""
        own = ("_plans", "_reader", "_opening")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self._open()

    @property
    def order(self) -> GlobalOrder | BlockOrder:
        """Which sample stands where."""
        return self._order

    def share(self, number: int, count: int) -> "TrainDataset":
        """One of `count` parts of the rows; rows that read the same blocks stay together."""
        assert isinstance(self._order, BlockOrder)
        each = self._order.batch_size // self._order.lanes
        unit = each if self.rows % each == 0 and self._first % each == 0 and self.rows >= count * each else 1  # fmt: skip
        units = self.rows // unit
        start, end = (units * place // count * unit for place in (number, number + 1))
        part = copy.copy(self)
        part._open()
        part._first, part.rows, part._memory = (
            self._first + start,
            end - start,
            self._memory // count,
        )
        return part

    def samples(self, arrays: dict[str, np.ndarray]) -> int:
        """All rows: another sample stands in the place of a bad one."""
        return len(arrays["image"])

    def release(self, step: int):
        """All rows up to those of `step` have been made: what they were read from is forgotten."""
        if self._reader is not None:
            self._reader.done(step)

    def close(self):
        """Stop reading ahead."""
        if self._reader is not None:
            self._reader.close()  # rows that wait for a block of it fail now

    def _sample(self, step: int, source: int, index: int, window: tuple[int, ...]) -> Sample:
        if not isinstance(self._order, BlockOrder):
            return self._sources[source][index]
        with self._opening:
            if self._reader is None:
                self._reader = self._read_from(step)
        return self._reader.sample(step, source, index, window)

    def _read_from(self, step: int) -> BlockReader:
        cfg = self._cfg
        cache = BlockCache(Path(cfg.data_dir).expanduser() / "blocks", cfg.cache_mb * 1_000_000)
        return BlockReader(
            self._sources,
            self._order,
            range(self._first, self._first + self.rows),
            step,
            memory=self._memory,
            cache=cache if cfg.cache_mb else None,
        )

    @property
    def spec(self) -> Spec:
        """Shapes and types of the arrays of this process's part of a batch."""
        return _spec(self.rows, self._image_size, self._tokenizer)

    def __getitem__(self, number: int) -> dict:
        return self.row(number, TrainCrop.pixels)

    def row(self, number: int, finish: Callable[[TrainCrop], Any]) -> dict:
        """A row with what `finish` makes of its crop as "image"."""
        step, row = divmod(number, self.rows)
        position = step * self._cfg.batch_size + self._first + self._skipped + row
        source, index, epoch, stream, window = (int(each_B[row]) for each_B in self._plan(step))
        bad: list[BadSample] = []
        while len(bad) < MAX_TRIES:
            if bad:
                draw = int(hash64(self._seed, position, len(bad)))
                source, index = self._order.another(stream, epoch, window, draw)
            rng = np.random.default_rng([self._seed, source, index, epoch])
            try:
                sample = self._sample(step, source, index, (stream, epoch, window))
                image, tokens_L = self._load(sample, rng, finish)
                return {"image": image, "tokens": tokens_L, "bad": bad}
            except BadSample as error:
                bad.append(error)
        raise ValueError(
            f"{self._sources[source].name}: {MAX_TRIES} samples in a row cannot be used; the first "
            f"are {'; '.join(str(error) for error in bad[:5])}"
        )

    def _plan(self, step: int) -> Rows:
        plan = self._plans.get(step)
        if plan is None:
            first = step * self._cfg.batch_size + self._first + self._skipped
            plan = self._order.rows(np.arange(first, first + self.rows))
            if len(self._plans) >= KEPT_PLANS:
                self._plans.pop(min(self._plans, default=0), None)
            self._plans[step] = plan
        return plan

    def _load(
        self, sample: Sample, rng: np.random.Generator, finish: Callable
    ) -> tuple[Any, np.ndarray]:
        cfg = self._cfg
        if not sample.captions:
            raise BadSample("missing-caption", key=sample.key, shard=sample.shard)
        caption = sample.captions[0]
        if len(sample.captions) > 1:
            caption = sample.captions[int(rng.choice(len(sample.captions), p=sample.caption_probs))]
        how = (cfg.augment, self._preprocess, self._image_size, cfg.max_image_pixels)
        image = or_bad(sample, lambda: finish(draw_crop(sample.image, rng, *how)))
        return image, or_bad(sample, self._tokenizer, [caption], rng, cfg.augment.text_mask)[0]


class EvalDataset:
    """The same for evaluation: samples in their own order, the first caption of each.

    Where `max_samples` is below the size, samples are taken at even distances. Rows beyond the
    last sample, and samples that cannot be used, have a False mask.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        cfg: DataConfig,
        *,
        batch_size: int,
        image_size: int,
        preprocess: PreprocessConfig,
        max_samples: int | None,
        process_index: int,
        process_count: int,
    ):
        if batch_size % process_count:
            raise ValueError(
                f"evaluation.batch_size={batch_size} must be a multiple of the {process_count} "
                "processes that share it"
            )
        self.rows = batch_size // process_count
        self._batch_size, self._first = batch_size, process_index * self.rows
        self._source, self._tokenizer, self._cfg = source, tokenizer, cfg
        self._image_size, self._preprocess = image_size, with_rotation(preprocess, cfg)
        self._samples = min(len(source), max_samples or len(source))
        self.batches = -(-self._samples // batch_size)

    @property
    def spec(self) -> Spec:
        """As in `TrainDataset`."""
        one = {"mask": np.bool_, "index": np.int64, "label": np.int32}
        return _spec(self.rows, self._image_size, self._tokenizer) | {
            name: ((self.rows,), np.dtype(kind)) for name, kind in one.items()
        }

    def __getitem__(self, number: int) -> dict:
        step, row = divmod(number, self.rows)
        place = step * self._batch_size + self._first + row
        if place >= self._samples:
            return self._nothing(-1, [])
        index = place * len(self._source) // self._samples
        try:
            sample = self._source[index]
            image_HWC = or_bad(
                sample,
                eval_image,
                sample.image,
                self._preprocess,
                self._image_size,
                self._cfg.max_image_pixels,
            )
            tokens_L = or_bad(sample, self._tokenizer, [sample.captions[0]])[0]
        except BadSample as error:
            return self._nothing(index, [error])
        return {
            "image": image_HWC,
            "tokens": tokens_L,
            "mask": np.bool_(True),
            "index": np.int64(index),
            "label": np.int32(-1 if sample.label is None else sample.label),
            "bad": [],
        }

    def samples(self, arrays: dict[str, np.ndarray]) -> int:
        """Rows with a sample's number. Those that fill up the last batch would thin out the bad ones."""
        return int((arrays["index"] >= 0).sum())

    def release(self, step: int):
        """Nothing is kept of a step."""

    def close(self):
        """Nothing is open."""

    def _nothing(self, index: int, bad: list[BadSample]) -> dict:
        return {
            "image": np.zeros((self._image_size, self._image_size, 3), np.uint8),
            "tokens": np.zeros(self._tokenizer.context_length, np.int32),
            "mask": np.bool_(False),
            "index": np.int64(index),
            "label": np.int32(-1),
            "bad": bad,
        }


def fill(
    arrays: dict[str, np.ndarray],
    dataset: Dataset,
    step: int,
    rows: Iterable[int],
) -> list[BadSample]:
    """Write some rows of the batch of a step into its arrays; the bad samples among them."""
    bad = []
    for row in rows:
        found = dataset[step * dataset.rows + row]
        for name, array in arrays.items():
            array[row] = found[name]
        bad += found["bad"]
    return bad


def with_rotation(preprocess: PreprocessConfig, cfg: DataConfig) -> PreprocessConfig:
    """EXIF rotation where either the model was trained with it, or a setting says so."""
    rotation = preprocess.exif_rotation or cfg.exif_rotation
    return dataclasses.replace(preprocess, exif_rotation=rotation)


def _spec(rows: int, image_size: int, tokenizer: Tokenizer) -> Spec:
    return {
        "image": ((rows, image_size, image_size, 3), np.dtype(np.uint8)),
        "tokens": ((rows, tokenizer.context_length), np.dtype(np.int32)),
    }


def or_bad(sample: Sample, load: Callable, *arguments):
    """What `load` makes of the arguments; an image or text that cannot be used is a `BadSample`."""
    try:
        return load(*arguments)
    except (ImageError, TokenError) as error:
        raise BadSample(error.reason, key=sample.key, shard=sample.shard) from error

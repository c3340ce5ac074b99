"""Batches for training and evaluation: Grain reads ahead in threads, or workers do.

The step number is the whole state. Grain's own iterator state is not used: restored with another
number of workers it gives other data without an error.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

import grain

from clip_jax.config import DataConfig, PreprocessConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.dataset import EvalDataset, Tokenizer, TrainDataset, collate
from clip_jax.data.samples import Source
from clip_jax.data.workers import WorkerBatches

MOST_ROWS = 16  # of a batch that a thread takes at once


class Batches:
    """An iterator of batches that holds threads or processes: close it, or use `with`.

    `check` is called with the ledger after every batch.
    """

    def __init__(
        self,
        start: Callable[[int], Iterator[dict]],
        step: int,
        ledger: BadSamples,
        check: Callable[[BadSamples], None],
    ):
        self.step = step  # number of the batch that comes next
        self.ledger = ledger
        self._start, self._check = start, check
        self._iterator = None
        self._closed = False

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict:
        if self._closed:
            raise ValueError("these batches are closed")
        if self._iterator is None:
            self._iterator = self._start(self.step)
        batch = next(self._iterator)
        self.step += 1
        bad = batch.pop("bad")
        self.ledger.record(len(batch["image"]), bad)
        self._check(self.ledger)
        return batch

    def close(self):
        """Stop the threads or processes."""
        self._closed = True
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exc):
        self.close()


def train_batches(
    source: Source | Sequence[Source],
    tokenizer: Tokenizer,
    cfg: DataConfig,
    *,
    image_size: int,
    preprocess: PreprocessConfig,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    ledger: BadSamples | None = None,
) -> Batches:
    """Batches `start_step`, `start_step` + 1, ... for ever; nothing before is read.

    Args:
      source: one source, or as many as `cfg.weights` has numbers.
      tokenizer: called as `tokenizer([caption], rng, cfg.augment.text_mask)`.
      cfg: batch size over all processes, augmentation, threads, workers, tolerance.
      image_size: pixels on each side.
      preprocess: how a crop is resized.
      seed: of order, augmentation and the choice of captions.
      start_step: the first batch; with the seed it is all there is to resuming.
      process_index: whose rows of each global batch, of `process_count` processes.
      process_count: the global batch does not depend on it.
      ledger: counts bad samples; a new one where None.

    Returns:
      Batches of {"image": uint8 (b, image_size, image_size, 3), "tokens": int32 (b, L)} with
      b = cfg.batch_size / process_count.

    Raises:
      ValueError: the batch does not divide, or, while reading, too many samples are bad.
    """
    sources = list(source) if isinstance(source, Sequence) else [source]
    rows = TrainDataset(
        sources,
        tokenizer,
        cfg,
        image_size=image_size,
        preprocess=preprocess,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
    )
    whole = sum(len(one) for one in sources)

    def start(step: int) -> Iterator[dict]:
        if cfg.workers:
            threads = cfg.threads or max(1, cores() // cfg.workers)
            return WorkerBatches(rows, step, workers=cfg.workers, threads=threads)
        return _in_threads(rows, step, sys.maxsize // rows.rows - step, cfg)

    def check(ledger: BadSamples):
        ledger.check(cfg.max_bad_share, whole=whole)

    return Batches(start, start_step, ledger or BadSamples(), check)


def eval_batches(
    source: Source,
    tokenizer: Tokenizer,
    cfg: DataConfig,
    *,
    batch_size: int,
    image_size: int,
    preprocess: PreprocessConfig,
    max_samples: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    ledger: BadSamples | None = None,
) -> Batches:
    """Every sample once, in order, on all processes together; as many batches on each of them.

    Batches are as in `train_batches`, with "mask" (b,) bool, False for rows that only fill up the
    last batch and for samples that cannot be used, "index" (b,) int64, the sample's number or -1,
    and "label" (b,) int32, its class or -1. `max_samples` takes that many at even distances.

    Raises:
      ValueError: the batch does not divide, or, while reading, too many samples are bad.
    """
    rows = EvalDataset(
        source,
        tokenizer,
        cfg,
        batch_size=batch_size,
        image_size=image_size,
        preprocess=preprocess,
        max_samples=max_samples,
        process_index=process_index,
        process_count=process_count,
    )

    def start(step: int) -> Iterator[dict]:
        return _in_threads(rows, step, rows.batches - step, cfg)

    def check(ledger: BadSamples):
        ledger.check(cfg.max_bad_share, whole=len(source))

    return Batches(start, 0, ledger or BadSamples(), check)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _From:
    """`rows` from a batch on, as the random access source that Grain wants: some rows an item."""

    def __init__(self, rows: TrainDataset | EvalDataset, step: int, batches: int, chunk: int):
        self._rows, self._first, self._chunk = rows, step * rows.rows, chunk
        self._length = batches * (rows.rows // chunk)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> list[dict]:
        first = self._first + number * self._chunk
        return [self._rows[row] for row in range(first, first + self._chunk)]


def _in_threads(rows: TrainDataset | EvalDataset, step: int, batches: int, cfg: DataConfig):
    # Grain's default of 16 threads is a fifth slower than one a core.
    threads = cfg.threads or cores()
    # An item costs Grain as much as a tenth of a picture's decoding, so it is several rows.
    most = max(1, min(MOST_ROWS, rows.rows // threads))
    chunk = max(size for size in range(1, most + 1) if rows.rows % size == 0)
    ahead = max(threads, 2 * rows.rows // chunk)
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    source = _From(rows, step, batches, chunk)
    dataset = grain.MapDataset.source(source).to_iter_dataset(read)
    whole = dataset.batch(rows.rows // chunk, drop_remainder=True, batch_fn=_collate_chunks)
    return iter(whole)


def _collate_chunks(chunks: Sequence[list[dict]]) -> dict:
    return collate([row for chunk in chunks for row in chunk])

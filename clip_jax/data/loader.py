"""Batches for training and evaluation: dataset, then threads or worker processes."""

import os
import sys
from collections.abc import Sequence

from clip_jax.config import DataConfig, PreprocessConfig
from clip_jax.data.bad_samples import BadSamples, refuse_lost
from clip_jax.data.batches import Batches, EqualBatches, ThreadBatches
from clip_jax.data.dataset import EvalDataset, Tokenizer, TrainDataset
from clip_jax.data.device_decode import DeviceBatches, open_decoders
from clip_jax.data.samples import Source
from clip_jax.data.workers import WorkerBatches

__all__ = ["Batches", "EqualBatches", "cores", "eval_batches", "train_batches"]


def train_batches(
    source: Source | Sequence[Source],
    tokenizer: Tokenizer,
    cfg: DataConfig,
    *,
    image_size: int,
    preprocess: PreprocessConfig,
    seed: int,
    start_step: int = 0,
    samples_before: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
    bad_samples: BadSamples | None = None,
) -> Batches:
    """Batches `start_step`, `start_step` + 1, ... for ever; nothing before is read.

    Args:
      source: one source, or as many as `cfg.weights` has numbers.
      tokenizer: called as `tokenizer([caption], rng, cfg.augment.text_mask)`.
      cfg: batch size over all processes, augmentation, threads, workers, tolerance.
      image_size: pixels on each side.
      preprocess: how a crop is resized.
      seed: of order, augmentation and the choice of captions.
      start_step: the first batch.
      samples_before: that were taken before it; None: by batches of this size. With the seed it is
        all there is to resuming.
      process_index: whose rows of each global batch, of `process_count` processes.
      process_count: the global batch does not depend on it.
      bad_samples: counts bad samples; a new one where None.

    Returns:
      Batches of {"image": uint8 (b, image_size, image_size, 3), "tokens": int32 (b, L)} with
      b = cfg.batch_size / process_count.

    Raises:
      ValueError: the batch does not divide, GPUs cannot decode, or, while reading, too many samples
        are bad.
    """
    sources = list(source) if isinstance(source, Sequence) else [source]
    usual = start_step * cfg.batch_size
    dataset = TrainDataset(
        sources,
        tokenizer,
        cfg,
        image_size=image_size,
        preprocess=preprocess,
        seed=seed,
        process_index=process_index,
        process_count=process_count,
        skipped=0 if samples_before is None else samples_before - usual,
    )
    whole = sum(len(one) for one in sources)

    def check(bad_samples: BadSamples):
        bad_samples.check(cfg.max_bad_share, whole=whole)

    counting = {"bad_samples": bad_samples or BadSamples(), "check": check}
    if cfg.workers:
        threads = cfg.threads or max(1, cores() // cfg.workers)
        return WorkerBatches(dataset, start_step, workers=cfg.workers, threads=threads, **counting)
    threads = cfg.threads or cores()
    if cfg.decode == "gpu":
        counting["decoders"] = open_decoders(image_size, preprocess.interpolation, threads)
        return DeviceBatches(dataset, start_step, sys.maxsize, threads=threads, **counting)
    return ThreadBatches(dataset, start_step, sys.maxsize, threads=threads, **counting)


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
    bad_samples: BadSamples | None = None,
) -> ThreadBatches:
    """Every sample once, in order, on all processes together; as many batches on each of them.

    Batches are as in `train_batches`, with "mask" (b,) bool, False for rows that only fill up the
    last batch and for samples that cannot be used, "index" (b,) int64, the sample's number or -1,
    and "label" (b,) int32, its class or -1. `max_samples` takes that many at even distances.

    Raises:
      ValueError: the batch does not divide, or, while reading, too many samples are bad.
    """
    refuse_lost(source, cfg.max_bad_share)
    dataset = EvalDataset(
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

    def check(bad_samples: BadSamples):
        bad_samples.check(cfg.max_bad_share, whole=len(source))

    return ThreadBatches(
        dataset,
        0,
        dataset.batches,
        threads=cfg.threads or cores(),
        bad_samples=bad_samples or BadSamples(),
        check=check,
    )


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

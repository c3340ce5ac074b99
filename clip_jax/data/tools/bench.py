"""How fast a source is read, decoded and batched, what limits, and how many cores a chip needs."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.config import DataConfig, PreprocessConfig
from clip_jax.data.dataset import Tokenizer
from clip_jax.data.images.transforms import ImageError, train_image
from clip_jax.data.loader import Batches, cores, train_batches
from clip_jax.data.samples import BadSample, Sample, Source
from clip_jax.data.tools import bench_storage
from clip_jax.data.tools.bench_storage import Link

# Pairs per second of a ViT-B/16 CLIP model at half of the chip's peak: 123 GFLOP a pair, forward
# and backward, against the makers' bfloat16 figures in TFLOP/s.
PEAK_TFLOPS = {
    "TPU v4": 275, "TPU v5e": 197, "TPU v5p": 459, "TPU v6e": 918, "TPU7x": 2307,
    "A100": 312, "H100": 989, "H200": 989, "B200": 2250,
}  # fmt: skip
PAIR_TFLOP = 0.123
ROUNDS = 4
WORKER_THREADS = 4  # of a process; more wait for each other


@dataclass(frozen=True)
class Stage:
    """One step of the work, alone on one core."""

    name: str
    seconds: float  # of processor time a sample

    @property
    def rate(self) -> float:
        """Samples per second of a core."""
        return 1 / self.seconds


@dataclass(frozen=True)
class Bench:
    """What was measured."""

    name: str
    stages: tuple[Stage, ...]
    images_per_second: float  # of batches, by the clock
    images_per_cpu_second: float  # of batches, by processor time of all threads
    first_batch_seconds: float
    workers: int
    link: Link | None = None  # of a storage behind a URL that can be read in blocks
    askers: int = 0  # threads that ask for each sample, in a global order; 0: it is read in blocks

    @property
    def limit(self) -> Stage:
        """The stage that takes the most time."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def overhead(self) -> float:
        """Processor time of order, batching and transport, as a share of the stages' time."""
        alone = sum(stage.seconds for stage in self.stages)
        return 1 / self.images_per_cpu_second / alone - 1

    def cores_for(self, chip: str) -> int:
        """Cores that feed one chip training ViT-B/16 at half of its peak."""
        return math.ceil(images_of(chip) / self.images_per_cpu_second)

    @property
    def bottleneck(self) -> str:
        """What limits batches on this machine: decoding, latency or bandwidth."""
        # What worker processes do a CPU-second is known by the clock alone, which a storage slows.
        alone = 1 / sum(stage.seconds for stage in self.stages)
        decoded = cores() * (alone if self.workers else self.images_per_cpu_second)
        if self.link is not None and self.askers and decoded > self.askers * self.link.one_by_one:
            return "latency"
        if self.link is None or self.askers or decoded <= self.link.images_per_second:
            return "decoding"
        return self.link.limit

    def to_text(self) -> str:
        """For a terminal."""
        lines = [f"{self.name}", f"{'stage':24} {'images/s a core':>16} {'us':>9}"]
        for stage in self.stages:
            mark = "  <- limits" if stage is self.limit else ""
            lines.append(f"{stage.name:24} {stage.rate:16.0f} {stage.seconds * 1e6:9.1f}{mark}")
        lines.append(f"{'batches, a CPU-second':24} {self.images_per_cpu_second:16.0f}")
        lines.append(f"{'batches, by the clock':24} {self.images_per_second:16.0f}")
        if not self.workers:
            lines.append(f"order, batching and transport add {self.overhead:.1%} to the stages")
        lines.append(f"first batch after {self.first_batch_seconds:.2f} s")
        if self.link is not None:
            lines += self._storage(self.link)
        needs = ", ".join(f"{chip} {self.cores_for(chip)}" for chip in PEAK_TFLOPS)
        lines.append(f"cores for one chip on ViT-B/16 at half of its peak: {needs}")
        return "\n".join(lines)

    def _storage(self, link: Link) -> list[str]:
        way_out = {
            "decoding": "more cores",
            "latency": "data.shuffle=block reads many samples in a request"
            if self.askers
            else "blocks have few bytes: write longer shards with `clip-jax data convert`",
            "bandwidth": "smaller images, a closer bucket, or data.cache_mb for later epochs",
        }[self.bottleneck]
        return [
            f"storage: {link.latency_s * 1e3:.0f} ms a request, {link.connection / 1e6:.0f} MB/s on one "
            f"connection, {link.together / 1e6:.0f} MB/s on {link.connections}; "
            f"{link.sample_bytes / 1e3:.0f} kB a sample, {link.request_samples:.0f} samples a request",
            f"it gives {link.images_per_second:.0f} images/s with data.shuffle=block, and "
            f"{link.one_by_one:.0f} a thread with data.shuffle=global",
            f"on {cores()} cores here {self.bottleneck} limits: {way_out}",
        ]

    def settings_for(self, chip: str, chips: int, cfg: DataConfig) -> list[str]:
        """The settings that feed the chips of a host, and what they need of it."""
        need = chips * images_of(chip)
        number = max(1, math.ceil(need / self.images_per_cpu_second))
        workers = math.ceil(number / WORKER_THREADS) if number > WORKER_THREADS else 0
        threads = math.ceil(number / max(1, workers))
        flags = [f"--data.threads {threads}"]
        if workers:
            flags.insert(0, f"--data.workers {workers}")
        lines = [f"{chips} x {chip} take {need:.0f} images/s of ViT-B/16: {number} cores"]
        if self.link is not None:
            link = self.link
            lines[0] += (
                f", {need * link.sample_bytes / 1e6:.0f} MB/s on {link.connections_for(need)} connections"
            )
            # Twice the window of one host, and what comes while a request is answered.
            held = 2e6 * cfg.shuffle_window_mb + 2 * need * link.request_s * link.sample_bytes
            flags += [
                "--data.shuffle block",
                f"--data.read-ahead-mb {max(cfg.read_ahead_mb, math.ceil(held / 1e6))}",
            ]
            if link.images_per_second < need:
                lines.append(
                    f"this storage gives a host {link.images_per_second:.0f} images/s, too little for "
                    f"them: it feeds {link.images_per_second / images_of(chip):.1f} of these chips"
                )
        return [*lines, " ".join(flags)]

    def to_json(self) -> dict:
        """What `clip-jax plan --data-bench` takes."""
        given = None if self.link is None else self.link.images_per_second
        return {
            "source": self.name,
            "images_per_core": self.images_per_cpu_second,
            "images_per_host": given,
            "bytes_per_image": None if self.link is None else self.link.sample_bytes,
        }


def check_chips(chip: str, chips: int):
    """Raises ValueError for a chip that is not known."""
    if chip not in PEAK_TFLOPS:
        raise ValueError(f"chip={chip!r} must be one of {', '.join(PEAK_TFLOPS)}")
    if chips < 1:
        raise ValueError(f"chips={chips} must be at least 1")


def images_of(chip: str) -> float:
    """Images that a chip takes in a second of training ViT-B/16 at half of its peak."""
    return PEAK_TFLOPS[chip] / 2 / PAIR_TFLOP


def bench(
    source: Source,
    tokenizer: Tokenizer,
    cfg: DataConfig,
    *,
    image_size: int = 224,
    preprocess: PreprocessConfig | None = None,
    seconds: float = 5.0,
    samples: int = 256,
) -> Bench:
    """Time each stage on `samples` samples in this thread, then batches for `seconds`.

    With worker processes their processor time is not seen from here, so that the rate a
    CPU-second is then that of the clock divided by the workers.
    """
    preprocess = preprocess or PreprocessConfig()
    rounds, link, read_s, kept = [], None, None, None
    if bench_storage.is_remote(source):
        link, read_s, kept = bench_storage.measure(source, seconds=seconds)
    for number in range(ROUNDS):  # in turns, because other programs slow both down
        indices = np.random.default_rng(number).integers(len(source), size=-(-samples // ROUNDS))
        if kept is None:
            read_s, some = _read(source, indices.tolist())
        else:
            some = [kept[number % len(kept)] for number in indices.tolist()] if kept else []
        alone = (read_s, *_stages(some, tokenizer, cfg, image_size, preprocess))
        reading = {"image_size": image_size, "preprocess": preprocess, "seed": 0}
        step = number * (1 << 20)  # other samples in each round
        start = time.perf_counter()
        with train_batches(source, tokenizer, cfg, start_step=step, **reading) as batches:
            next(batches)
            first = time.perf_counter() - start
            rounds.append((*alone, *_rates(batches, seconds / ROUNDS), first))
    read, decode, tokenize, rate, cpu_rate, first = np.median(rounds, axis=0).tolist()
    return Bench(
        name=source.name,
        stages=(
            Stage("read", read),
            Stage("decode, crop, resize", decode),
            Stage("tokenize", tokenize),
        ),
        images_per_second=rate,
        images_per_cpu_second=rate / min(cfg.workers, cores()) if cfg.workers else cpu_rate,
        first_batch_seconds=first,
        workers=cfg.workers,
        link=link,
        askers=max(1, cfg.workers) * (cfg.threads or cores()) if cfg.shuffle == "global" else 0,
    )


def _read(source: Source, indices: Sequence[int]) -> tuple[float, list[Sample]]:
    """Seconds of processor time for reading a sample, and the samples."""
    read: list[Sample] = []
    return _time(lambda index: read.append(source[index]), indices), read


def _stages(read, tokenizer, cfg, image_size, preprocess) -> tuple[float, float]:
    """Seconds of processor time a sample for decoding and tokenizing."""
    rng = np.random.default_rng(0)

    def decode(sample: Sample):
        train_image(sample.image, rng, cfg.augment, preprocess, image_size, cfg.max_image_pixels)

    return (
        _time(decode, read),
        _time(lambda sample: tokenizer([sample.captions[0]], rng), read),
    )


def _rates(batches: Batches, seconds: float) -> tuple[float, float]:
    """Images a second by the clock and by processor time."""
    next(batches), next(batches)  # what was read ahead of the first
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds or not count:
        count += len(next(batches)["image"])
    return count / (time.perf_counter() - start), count / (time.process_time() - cpu)


def _time(action: Callable, items: Sequence) -> float:
    """Mean seconds of processor time for one item; bad items do not count."""
    taken = []
    for item in items:
        start = time.thread_time()
        try:
            action(item)
        except (BadSample, ImageError):
            continue
        taken.append(time.thread_time() - start)
    if not taken:
        raise ValueError(f"none of {len(items)} samples can be used")
    return float(np.mean(taken))

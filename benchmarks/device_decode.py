"""Images a second of `data.decode=gpu` and its pixels beside those of `data.decode=cpu`.

    python benchmarks/device_decode.py            # DALI on the first GPU
    python benchmarks/device_decode.py --on cpu   # its CPU device, where there is no GPU

The files are those of image_speed.py, 512x384 pixels, cropped by RandomResizedCrop(0.9 to 1) to 224. "rows" is all that
stays on the host, of batches whose decoder does nothing: reading from memory, drawing, tokenizing, copying.
"""

import argparse
import dataclasses
import time

import numpy as np
from image_speed import EXACT, MAX_PIXELS, PREPROCESS, SIZE, photograph

from clip_jax.config import DataConfig
from clip_jax.data import loader
from clip_jax.data.device_decode import MOST_ROWS, Dali
from clip_jax.data.images.transforms import draw_crop
from clip_jax.data.samples import Sample
from clip_jax.data.tokenizers.registry import ClipTokenizer


@dataclasses.dataclass(frozen=True)
class Files:
    """Pictures in memory, with a caption of usual length."""

    files: tuple[bytes, ...]
    name = "files"
    fingerprint = "files"

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        caption = f"a photograph of number {index} on a table beside a window in the morning"
        return Sample(self.files[index], (caption,), key=str(index), shard="")


def rate(call, images: int, seconds: float) -> tuple[float, float]:
    """Images a second by the clock and by processor time of all threads."""
    call()
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        call()
        count += images
    return count / (time.perf_counter() - start), count / (time.process_time() - cpu)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--on", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--threads", type=int, default=loader.cores())
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    files = tuple(photograph(seed) for seed in range(MOST_ROWS))
    crops = [
        draw_crop(data, np.random.default_rng(seed), EXACT, PREPROCESS, SIZE, MAX_PIXELS)
        for seed, data in enumerate(files)
    ]
    gpu = 0 if arguments.on == "gpu" else None
    dali = Dali(gpu, SIZE, PREPROCESS.interpolation, threads=arguments.threads)
    off = np.abs(dali(crops).astype(int) - np.stack([crop.pixels() for crop in crops]))
    print(f"pixels of 255: {off.mean():.3f} apart on average, {off.max()} at most")
    found = {
        f"DALI on the {arguments.on}, {len(crops)} at once": rate(
            lambda: dali(crops), len(crops), arguments.seconds
        ),
        "clip_jax, exact, one thread": rate(
            lambda: [crop.pixels() for crop in crops], len(crops), arguments.seconds
        ),
    }
    loader.open_decoders = lambda *_: [
        lambda crops: np.zeros((len(crops), SIZE, SIZE, 3), np.uint8)
    ]
    cfg = DataConfig(decode="gpu", batch_size=256, threads=arguments.threads, augment=EXACT)
    how = {"image_size": SIZE, "preprocess": PREPROCESS, "seed": 0}
    with loader.train_batches(Files(files), ClipTokenizer(), cfg, **how) as batches:
        found["rows, whose pixels are not made"] = rate(
            lambda: next(batches), cfg.batch_size, arguments.seconds
        )
    for name, (clock, cpu) in found.items():
        print(f"{name:34} {clock:7.0f} a second, {cpu:7.0f} a CPU-second")


if __name__ == "__main__":
    main()

"""Images per CPU-second of decoding, RandomResizedCrop(0.9 to 1) and resizing to 224, per thread.

    python benchmarks/image_speed.py

Files of 512x384 pixels and about 90 kB, in turns, the best of several rounds. "Pillow to float32"
does in Pillow and NumPy what open_clip's training transform does; open_clip's own is timed too
where it is installed. Pixels are compared with Pillow's of the same crop.
"""

import argparse
import dataclasses
import importlib.util
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from clip_jax.config import AugmentConfig, PreprocessConfig
from clip_jax.data.images.pixels import random_box
from clip_jax.data.images.transforms import decode, train_image

SIZE, MAX_PIXELS = 224, 50_000_000
PREPROCESS = PreprocessConfig()
EXACT = AugmentConfig()
FAST = dataclasses.replace(EXACT, resize="fast")


def photograph(seed: int) -> bytes:
    """A JPEG with the spectrum of photographs and a little grain."""
    rng = np.random.default_rng(seed)
    H, W = 384, 512
    frequency_HW = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])
    frequency_HW[0, 0] = 1
    image_HWC = np.empty((H, W, 3))
    for channel in range(3):
        phase_HW = np.exp(2j * np.pi * rng.random(frequency_HW.shape))
        noise_HW = np.fft.irfft2(phase_HW / frequency_HW**1.2, (H, W))
        image_HWC[..., channel] = 120 + 45 * noise_HW / noise_HW.std()
    image_HWC += rng.normal(0, 2, (H, W, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(image_HWC, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def pillow_crop(data: bytes, seed: int) -> np.ndarray:
    """The same crop as clip_jax draws, by Pillow."""
    image = Image.open(io.BytesIO(data))
    box = random_box(image.size, np.random.default_rng(seed), EXACT)
    resized = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(resized.convert("RGB"))


def pillow_to_float(data: bytes, seed: int) -> np.ndarray:
    pixels_CHW = pillow_crop(data, seed).transpose(2, 0, 1).astype(np.float32)
    mean_C11, std_C11 = (
        np.float32(values).reshape(3, 1, 1) for values in (PREPROCESS.mean, PREPROCESS.std)
    )
    return (pixels_CHW / 255 - mean_C11) / std_C11


def ours(augment: AugmentConfig) -> Callable[[bytes, int], np.ndarray]:
    def crop(data: bytes, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return train_image(data, rng, augment, PREPROCESS, SIZE, MAX_PIXELS)

    return crop


def stages() -> dict[str, Callable[[bytes, int], np.ndarray]]:
    found = {
        "Pillow to float32": pillow_to_float,
        "Pillow to uint8": pillow_crop,
        "clip_jax, exact": ours(EXACT),
        "clip_jax, fast": ours(FAST),
        "clip_jax, decoding alone": lambda data, seed: decode(data, max_pixels=MAX_PIXELS),
    }
    if importlib.util.find_spec("open_clip") and importlib.util.find_spec("torch"):
        import open_clip
        import torch

        torch.set_num_threads(1)
        transform = open_clip.image_transform(SIZE, is_train=True)
        found = {"open_clip": lambda data, seed: transform(Image.open(io.BytesIO(data)))} | found
    return found


def per_cpu_second(function: Callable, files: list[bytes], rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.thread_time()
        for seed, data in enumerate(files):
            function(data, seed)
        best = min(best, time.thread_time() - start)
    return len(files) / best


def per_second(function: Callable, files: list[bytes], threads: int) -> float:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, files, range(len(files))))
        start = time.perf_counter()
        list(pool.map(function, files * 4, range(4 * len(files))))
        return 4 * len(files) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    files = [photograph(seed) for seed in range(arguments.files)]
    print(f"{len(files)} files of {np.mean([len(data) for data in files]) / 1e3:.0f} kB")
    references = [pillow_crop(data, seed).astype(int) for seed, data in enumerate(files)]
    first = None
    for name, function in stages().items():
        rate = per_cpu_second(function, files, arguments.rounds)
        first = first or rate
        line = f"{name:26} {rate:6.0f} images per CPU-second ({rate / first:4.2f} x)"
        if name.startswith("clip_jax,") and "alone" not in name:
            difference = np.mean(
                [
                    np.abs(function(d, i) - r).mean()
                    for i, (d, r) in enumerate(zip(files, references))
                ]
            )
            together = per_second(function, files, arguments.threads)
            line += f", {difference:.4f} of 255 from Pillow, {together:.0f}/s on {arguments.threads} threads"
        print(line)


if __name__ == "__main__":
    main()

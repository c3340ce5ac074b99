"""Images per CPU-second from tar shards to batches ready for the device, ours against open_clip's.

    python benchmarks/data_speed.py --folder /tmp/shards --peer-python /path/with/open_clip/bin/python

The peer's Python needs open_clip_torch 3.3, torchvision, webdataset 0.2.86 and pandas. Both read
the same shards of 512x384 JPEGs, take a RandomResizedCrop(0.9 to 1) to 224 and tokenize the caption,
in turns, in one process of one thread each. open_clip's batch is float32 and normalised, as its
model wants it; ours is uint8, because the model normalises on the device.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np

SHARDS, SAMPLES = 8, 250
BATCH = 64
PEER = """
import argparse, json, sys, time
import open_clip, torch
from open_clip_train.data import get_wds_dataset
torch.set_num_threads(1)
folder, shards, samples, batch, seconds = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
transform = open_clip.image_transform(224, is_train=True)
args = argparse.Namespace(
    train_data=f"{folder}/{{00000..{shards - 1:05d}}}.tar", train_num_samples=shards * samples,
    train_data_upsampling_factors=None, dataset_resampled=False, seed=0, batch_size=batch,
    world_size=1, workers=0)
tokenizer = open_clip.get_tokenizer("ViT-B-32")
def forever():
    while True:
        yield from get_wds_dataset(args, transform, True, tokenizer=tokenizer).dataloader
batches = forever()
for _ in range(3):
    next(batches)
start, cpu, count = time.perf_counter(), time.process_time(), 0
while time.perf_counter() - start < seconds:
    images, tokens = next(batches)
    count += len(images)
print(json.dumps({"images_per_cpu_second": count / (time.process_time() - cpu)}))
"""


def photograph(rng: np.random.Generator) -> np.ndarray:
    """Noise with the spectrum of photographs, a gradient, edges and grain, 384x512."""
    H, W = 384, 512
    frequency_HW = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])
    frequency_HW[0, 0] = 1
    channels = []
    for _ in range(3):
        wave_HW = np.exp(2j * np.pi * rng.random(frequency_HW.shape)) / frequency_HW
        noise_HW = np.fft.irfft2(wave_HW, (H, W))
        channels.append(noise_HW / noise_HW.std())
    image_HWC = 110 + 35 * (0.7 * channels[0][..., None] + 0.3 * np.stack(channels, -1))
    image_HWC += np.linspace(-30, 30, W)[None, :, None]
    for _ in range(6):
        y, x = rng.integers(0, (H - 90, W - 90))
        h, w = rng.integers(20, 90, 2)
        image_HWC[y : y + h, x : x + w] = rng.integers(0, 255, 3)
    image_HWC += rng.normal(0, 1.5, (H, W, 1))
    return np.clip(image_HWC, 0, 255).astype(np.uint8)


def make_shards(folder: Path):
    """Write the shards, unless they are there."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        path = folder / f"{shard:05d}.tar"
        if path.exists():
            continue
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar:
            for number in range(SAMPLES):
                file = io.BytesIO()
                quality = int(rng.integers(85, 96))
                Image.fromarray(photograph(rng)).save(file, "JPEG", quality=quality)
                caption = f"picture {number} of shard {shard}, with noise and some boxes in it"
                for suffix, data in (("jpg", file.getvalue()), ("txt", caption.encode())):
                    info = tarfile.TarInfo(f"{shard:05d}{number:04d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        partial.rename(path)


def ours(folder: str, resize: str, seconds: float) -> dict:
    """Our batches, one thread."""
    from clip_jax.config import AugmentConfig, DataConfig
    from clip_jax.data.sources.registry import open_source
    from clip_jax.data.tokenizers.registry import ClipTokenizer
    from clip_jax.data.tools.bench import bench

    cfg = DataConfig(threads=1, batch_size=BATCH, augment=AugmentConfig(resize=resize))
    source = open_source(f"tar:{folder}/*.tar", "train", cfg)
    found = bench(source, ClipTokenizer(), cfg, seconds=seconds, samples=512)
    print(found.to_text(), file=sys.stderr)
    return {
        "images_per_cpu_second": found.images_per_cpu_second,
        "overhead": found.overhead,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="/tmp/clip_jax_speed")
    parser.add_argument("--peer-python", help="an interpreter that has open_clip")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", choices=("exact", "fast"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        print(json.dumps(ours(args.folder, args.ours, args.seconds)))
        return
    make_shards(Path(args.folder))
    again = [sys.executable, __file__, "--folder", args.folder, "--seconds", str(args.seconds)]
    commands = {name: [*again, "--ours", name] for name in ("exact", "fast")}
    if args.peer_python:
        numbers = [str(number) for number in (SHARDS, SAMPLES, BATCH, args.seconds)]
        commands["open_clip"] = [args.peer_python, "-c", PEER, args.folder, *numbers]
    rates: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(out.stdout.splitlines()[-1])
            rates[name].append(found["images_per_cpu_second"])
            print(time.strftime("%X"), name, found, flush=True)
    for name, values in rates.items():
        ratio = f", {np.median(values) / np.median(rates['open_clip']):.2f} times open_clip" if args.peer_python else ""  # fmt: skip
        print(f"{name}: median {np.median(values):.0f} images per CPU-second{ratio}")


if __name__ == "__main__":
    main()

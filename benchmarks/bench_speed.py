"""Images embedded a second: `clip-jax bench` against CLIP_benchmark's own loop, on the same tars.

    python benchmarks/bench_speed.py --images 1000

Random weights of ViT-B-32, JPEGs of 500 x 375, both in float32 on the CPU; decoding and resizing count.
CLIP_benchmark's loop is its build_dataset, a DataLoader and run_classification, with open_clip's model;
its DataLoader gets as many workers as there are cores, its best. Needs `make parity`'s environment.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.evaluation.bench.tasks import read_suite

CLASSES = 10


def write_set(folder: Path, images: int):
    """MNIST's layout with photographs' sizes: noise, blurred, so that JPEG has something to decode."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("".join(f"{n}\n" for n in range(CLASSES)))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    (folder / "test" / "nshards.txt").write_text("1\n")
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number in range(images):
            small_HWC = rng.integers(0, 256, (48, 64, 3), np.uint8)
            file = io.BytesIO()
            Image.fromarray(small_HWC).resize((500, 375), Image.Resampling.BICUBIC).save(
                file, "JPEG"
            )
            for ending, content in (
                ("jpg", file.getvalue()),
                ("cls", str(number % CLASSES).encode()),
            ):
                info = tarfile.TarInfo(f"s{number:07d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def theirs(folder: Path, batch: int) -> float:
    """Seconds of CLIP_benchmark's loop, after one batch to warm up."""
    import open_clip
    import torch
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification

    torch.set_num_threads(os.cpu_count() or 1)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    model.eval()
    dataset = build_dataset("wds/mnist", root=str(folder), transform=transform, split="test")
    loader = torch.utils.data.DataLoader(
        dataset.batched(batch), batch_size=None, shuffle=False, num_workers=os.cpu_count() or 1
    )
    classifier = torch.randn(512, CLASSES)
    with torch.no_grad():
        model.encode_image(torch.zeros(batch, 3, 224, 224))
    start = time.monotonic()
    logits, _ = zeroshot_classification.run_classification(
        model, classifier, loader, "cpu", amp=False
    )
    assert len(logits)
    return time.monotonic() - start


def own(root: Path, batch: int) -> float:
    """Seconds of a task of `clip-jax bench`, after one batch to warm up."""
    import jax

    from clip_jax import sharding
    from clip_jax.config import DataConfig, EvaluationConfig, MeshConfig
    from clip_jax.data.tokenizers.clip_bpe import ClipTokenizer
    from clip_jax.evaluation.bench.cache import Cache
    from clip_jax.evaluation.bench.layouts import open_task
    from clip_jax.evaluation.bench.measure import Subject, embed_images
    from clip_jax.evaluation.encode import Encoder
    from clip_jax.models.clip import create_model

    model, tokenizer = create_model("ViT-B-32"), ClipTokenizer()
    images, tokens = np.zeros((1, 224, 224, 3), np.uint8), np.ones((1, 77), np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images, tokens)
    encoder = Encoder(model, variables, sharding.make_mesh(MeshConfig()), batch_size=batch)
    data, cfg = DataConfig(data_dir=str(root)), EvaluationConfig(batch_size=batch)
    (task,) = (task for task in read_suite("datacomp38").tasks if task.name == "mnist")
    source = open_task(task, [root], data)
    subject = Subject("own", model, tokenizer, encoder, Cache(root / "cache"), "0")
    warm = {
        "image": np.zeros((batch, 224, 224, 3), np.uint8),
        "mask": np.ones(batch, bool),
        "index": np.arange(batch),
    }
    encoder.encode_images([warm])
    start = time.monotonic()
    z_NE, _ = embed_images(subject, task, source, cfg=cfg, data=data, save_every=8192)
    assert len(z_NE) == len(source)
    return time.monotonic() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_set(root / "wds_mnist", args.images)
        seconds = {
            "CLIP_benchmark": theirs(root / "wds_mnist", args.batch),
            "clip_jax": own(root, args.batch),
        }
    rates = {name: round(args.images / each, 1) for name, each in seconds.items()}
    ratio = round(seconds["CLIP_benchmark"] / seconds["clip_jax"], 2)
    json.dump({"images_per_s": rates, "ratio": ratio, "cores": os.cpu_count()}, sys.stdout)
    print()


if __name__ == "__main__":
    main()

"""Embedding against the forward pass alone, and against open_clip's loop on the same files and weights.

    python benchmarks/embed_speed.py --model ViT-B-32 --samples 256 [--peer-python .venv-parity/bin/python]

Makes JPEG files with captions, embeds them into files by the pipeline of `clip-jax embed` (read, decode, tokenize, forward, write), and
runs the same programs on batches that lie on the device already. The peer reads the same files with open_clip's preprocessing in a
PyTorch DataLoader, and the same weights, and its vectors are compared.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PEER = """
import sys, time, csv, numpy as np, torch, open_clip
from PIL import Image
folder, name, batch, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=f"{folder}/weights/open_clip_model.safetensors")
model.eval()
tokenizer = open_clip.get_tokenizer(name)
rows = list(csv.DictReader(open(f"{folder}/pairs.csv")))
class Set(torch.utils.data.Dataset):
    def __len__(self): return len(rows)
    def __getitem__(self, i): return preprocess(Image.open(f"{folder}/{rows[i]['filepath']}")), tokenizer([rows[i]["caption"]])[0]
loader = torch.utils.data.DataLoader(Set(), batch_size=batch, num_workers=threads)
def run(limit=None):
    z = []
    with torch.no_grad():
        for n, (images, tokens) in enumerate(loader):
            z.append((model.encode_image(images, normalize=True).numpy(), model.encode_text(tokens, normalize=True).numpy()))
            if limit and n + 1 >= limit: break
    return [np.concatenate(x) for x in zip(*z)]
run(1)
start = time.perf_counter()
image, text = run()
print("SECONDS", time.perf_counter() - start)
np.savez(f"{folder}/peer.npz", image=image, text=text)
"""


def make_files(folder: Path, samples: int):
    """JPEGs of 512x384 noise at several scales, and captions of usual lengths."""
    import simplejpeg
    from PIL import Image

    rng, lines = np.random.default_rng(0), ["filepath,caption"]
    words = [
        "a",
        "photo",
        "of",
        "the",
        "red",
        "dog",
        "on",
        "green",
        "grass",
        "near",
        "some",
        "old",
        "house",
        "in",
        "winter",
        "with",
        "two",
        "people",
    ]
    for number in range(samples):
        small_HWC = rng.integers(0, 256, (24, 32, 3), np.uint8)
        image = Image.fromarray(small_HWC).resize((512, 384), Image.Resampling.BICUBIC)
        pixels_HWC = np.asarray(image).astype(int) + rng.integers(-8, 8, (384, 512, 3))
        data = simplejpeg.encode_jpeg(pixels_HWC.clip(0, 255).astype(np.uint8), quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(data)
        caption = " ".join(rng.choice(words, rng.integers(6, 18)))
        lines.append(f"{number:05d}.jpg,{caption}")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--peer-python", help="of an environment with open_clip")
    args = parser.parse_args()

    import jax

    from clip_jax import sharding
    from clip_jax.collection.embed import EmbedConfig, embed
    from clip_jax.collection.embeddings import open_embeddings
    from clip_jax.config import DataConfig, MeshConfig
    from clip_jax.data.loader import cores
    from clip_jax.data.sources import registry
    from clip_jax.data.tokenizers.registry import ClipTokenizer
    from clip_jax.evaluation.encode import Encoder, trim
    from clip_jax.models.clip import create_model
    from clip_jax.weights.export import export
    from clip_jax.weights.load import Loaded, preprocess_of

    folder = Path(tempfile.mkdtemp(prefix="embed_speed_"))
    make_files(folder, args.samples)
    model, B = create_model(args.model), args.batch_size
    size = model.config.vision.image_size
    images, tokens = np.zeros((1, size, size, 3), np.uint8), np.ones((1, 77), np.int32)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), images, tokens))
    loaded = Loaded(model, variables, ClipTokenizer(), preprocess_of(model.config))
    mesh = sharding.make_mesh(MeshConfig())
    data = DataConfig(data_dir=str(folder / "cache"))
    source = registry.open_source(f"pairs:{folder}/pairs.csv", "train", data)
    where = {"data": data, "mesh": mesh, "origin": {}}
    cfg = EmbedConfig(batch_size=B, part_size=B * 4, dtype="float32")
    embed(loaded, source, str(folder / "warm"), cfg=cfg, **where)

    encoder = Encoder(model, variables, mesh, batch_size=B)
    captions = [source[index].captions[0] for index in range(args.samples)]
    ready = [
        {
            "image": np.stack(
                [loaded.preprocess(source[i].image) for i in range(first, first + B)]
            ),
            "tokens": trim(model.config.text, loaded.tokenizer(captions[first : first + B])),
        }
        for first in range(0, args.samples - args.samples % B, B)
    ]
    list(encoder.encode_pairs(ready[:2]))
    rates = {"forward": [], "embed": []}
    for repeat in range(3):  # in turn, so that both meet the same machine
        start = time.perf_counter()
        list(encoder.encode_pairs(ready))
        rates["forward"].append(len(ready) * B / (time.perf_counter() - start))
        start = time.perf_counter()
        embed(loaded, source, str(folder / f"out{repeat}"), cfg=cfg, **where)
        rates["embed"].append(args.samples / (time.perf_counter() - start))
    best = {name: max(found) for name, found in rates.items()}
    print(
        f"{args.model}, {args.samples} pairs of 512x384 JPEGs, batch {B}, float32, {cores()} cores"
    )
    print(f"forward of both towers alone   {best['forward']:8.1f} pairs/s")
    print(
        f"clip-jax embed, files to files {best['embed']:8.1f} pairs/s, {best['embed'] / best['forward']:.3f} of it"
    )
    if args.peer_python:
        export(
            folder / "weights", model.config, variables, to="open_clip", tokenizer=loaded.tokenizer
        )
        command = [args.peer_python, "-c", PEER, str(folder), args.model, str(B), str(cores())]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            sys.exit(found.stderr)
        rate = args.samples / float(found.stdout.split("SECONDS")[1])
        print(
            f"open_clip's loop               {rate:8.1f} pairs/s; ours is {best['embed'] / rate:.2f} times that"
        )
        peer, ours = np.load(folder / "peer.npz"), open_embeddings(folder / "out0")
        for kind in ("image", "text"):
            z_NE = ours.vectors[kind].take(np.arange(args.samples))
            print(f"largest difference of {kind} vectors: {np.abs(z_NE - peer[kind]).max():.1e}")


if __name__ == "__main__":
    main()

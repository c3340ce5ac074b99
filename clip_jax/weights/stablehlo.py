"""A model as StableHLO: it runs wherever JAX runs, without clip_jax and without its model code."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.hardware import Anywhere, traced_for
from clip_jax.models.clip import CLIP, abstract_inputs

EXAMPLE = '''"""Run an exported CLIP model; needs jax, flatbuffers and numpy: python run.py [PHOTO.npy]"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

here = Path(__file__).parent
about = json.loads((here / "about.json").read_text())
weights = {name: jax.device_put(array) for name, array in np.load(here / "weights.npz").items()}
encode_image = jax.jit(jax.export.deserialize((here / "encode_image.bin").read_bytes()).call)
encode_text = jax.jit(jax.export.deserialize((here / "encode_text.bin").read_bytes()).call)

size, length = about["image_size"], about["context_length"]
images = np.load(sys.argv[1]) if len(sys.argv) > 1 else np.zeros((1, size, size, 3), np.uint8)
tokens = np.zeros((2, length), np.int32)  # ids of the tokenizer that was trained with the model
tokens[:, 0] = about["vocab_size"] - 1
z_image, z_text = encode_image(weights, images), encode_text(weights, tokens)
print("cosines of images with texts:", np.asarray(z_image @ z_text.T).tolist())
'''


def export_portable(
    model: CLIP,
    variables: Mapping,
    path: str | Path,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
):
    """Write a model as two StableHLO programs and their weights.

    The directory gets `encode_image.bin` and `encode_text.bin`, made by `jax.export` for any
    batch size; `weights.npz`, which both take as their first argument; `about.json`; and
    `run.py`, which shows how to run them with jax, flatbuffers and numpy alone.

    Args:
      model: what `create_model` or `load` gave.
      variables: its variables.
      path: a directory that is new or empty. It appears whole or not at all.
      platforms: where the programs are to run: "cpu", "cuda", "rocm" or "tpu".

    Raises:
      ValueError: the directory holds something already, or a platform is unknown.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not empty: export into a new directory")
    unknown = set(platforms) - {"cpu", "cuda", "rocm", "tpu"}
    if unknown or not platforms:
        raise ValueError(f"platforms={tuple(platforms)} must be of cpu, cuda, rocm and tpu")
    # The fused attention of one platform is unknown to the others.
    config = dataclasses.replace(model.config, attention="plain", remat="none")
    # No file can hold the checks of values.
    portable = CLIP(config, checked=False)
    arrays = flax.traverse_util.flatten_dict(dict(variables), sep="/")

    def encode(method: str, inputs: jax.ShapeDtypeStruct) -> jax.export.Exported:
        def call(weights: dict, batch: jax.Array) -> jax.Array:
            nested = flax.traverse_util.unflatten_dict(weights, sep="/")
            return portable.apply(nested, batch, method=method)

        return jax.export.export(jax.jit(call), platforms=tuple(platforms))(shapes, inputs)

    shapes = {
        name: jax.ShapeDtypeStruct(array.shape, jnp.float32) for name, array in arrays.items()
    }
    (B,) = jax.export.symbolic_shape("batch")
    images_BHWC, tokens_BL = abstract_inputs(config, B)
    # A GPU's own forms hold what no file can, such as layouts, and others would not run them.
    with traced_for(Anywhere()):
        programs = {
            "encode_image.bin": encode("encode_image", images_BHWC).serialize(),
            "encode_text.bin": encode("encode_text", tokens_BL).serialize(),
        }
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name, program in programs.items():
            (partial / name).write_bytes(program)
        host = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        np.savez(partial / "weights.npz", **host)
        about = {
            "model": config.name,
            "embed_dim": config.embed_dim,
            "image_size": config.vision.image_size,
            "context_length": config.text.context_length,
            "vocab_size": config.text.vocab_size,
            "preprocess": dataclasses.asdict(config.preprocess),
            "tokenizer": config.tokenizer,
            "platforms": list(platforms),
            "jax": jax.__version__,
        }
        (partial / "about.json").write_text(json.dumps(about, indent=2) + "\n")
        (partial / "run.py").write_text(EXAMPLE)
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

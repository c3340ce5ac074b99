"""Temporaries and time of the contrastive losses on one device: written out and differentiated by JAX, against tiled.

    python benchmarks/loss_memory.py                                  # 16,384 pairs, both losses
    python benchmarks/loss_memory.py --batch 65536 --no-naive         # what the naive form has no memory for
    python benchmarks/loss_memory.py --batch 1048576 --no-naive --dtype bfloat16 --tile 1024

Value and gradients by both embeddings and the scalars. Temporaries are the compiler's own count; the
time is the median of rounds in which the forms take turns. Each row also says how far the gradients are
from those of the naive form, where that runs.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax.losses import replicated_sigmoid_loss, sigmoid_loss, softmax_loss


def naive_softmax_loss(image_BE, text_BE, scale):
    """As trainers write it: the cross-entropy of the logits' rows and of their columns."""
    logits_BB = scale * jnp.matmul(image_BE, text_BE.T, precision=jax.lax.Precision.HIGHEST)
    label_B = jnp.arange(len(logits_BB))
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    rows_B, columns_B = cross_entropy(logits_BB, label_B), cross_entropy(logits_BB.T, label_B)
    return (rows_B.mean() + columns_B.mean()) / 2


KINDS = {
    "softmax": (naive_softmax_loss, softmax_loss, (jnp.float32(20.0),)),
    "sigmoid": (replicated_sigmoid_loss, sigmoid_loss, (jnp.float32(20.0), jnp.float32(-10.0))),
}


def embeddings(batch: int, width: int, dtype: str):
    """Unit vectors of images, and of texts that are somewhat like them."""
    keys = jax.random.split(jax.random.key(0))
    image_BE, noise_BE = (jax.random.normal(key, (batch, width)) for key in keys)
    pairs = image_BE, image_BE + 4 * noise_BE
    return tuple((z / jnp.linalg.norm(z, axis=1, keepdims=True)).astype(dtype) for z in pairs)


def program(loss, arguments):
    argnums = tuple(range(len(arguments)))
    return jax.jit(jax.value_and_grad(loss, argnums)).lower(*arguments).compile()


def seconds(compiled, arguments) -> float:
    began = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    return time.perf_counter() - began


def distance(found, right) -> float:
    """The largest relative error of a gradient."""
    return max(
        float(np.linalg.norm(np.float64(a) - np.float64(b)) / np.linalg.norm(np.float64(b)))
        for a, b in zip(found[1], right[1], strict=True)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16_384, help="pairs")
    parser.add_argument("--width", type=int, default=512, help="numbers of an embedding")
    parser.add_argument("--tile", type=int, default=192, help="rows' worth held at once")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-naive", action="store_true", help="the tiled form alone")
    args = parser.parse_args()
    pairs = embeddings(args.batch, args.width, args.dtype)
    for kind in args.kinds:
        dense, fast, scalars = KINDS[kind]
        arguments = (*pairs, *scalars)
        programs = {"tiled": program(lambda *a, f=fast: f(*a, tile=args.tile), arguments)}
        if not args.no_naive:
            programs["naive"] = program(dense, arguments)
        found = {name: jax.device_get(run(*arguments)) for name, run in programs.items()}
        times = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, run in programs.items():
                times[name].append(seconds(run, arguments))
        rows = {
            name: {
                "temporaries_gb": round(run.memory_analysis().temp_size_in_bytes / 1e9, 4),
                "seconds": round(statistics.median(times[name]), 3),
            }
            for name, run in programs.items()
        }
        shown = {"kind": kind, **vars(args), "device": jax.devices()[0].device_kind, **rows}
        del shown["kinds"]
        if not args.no_naive:
            shown["time_of_naive"] = round(rows["tiled"]["seconds"] / rows["naive"]["seconds"], 3)
            shown["gradients_differ_by"] = float(f"{distance(found['tiled'], found['naive']):.1e}")
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()

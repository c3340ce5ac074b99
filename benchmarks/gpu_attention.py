"""cuDNN's attention against the plain one in float32: errors of results and gradients, and times, on a GPU.

    python benchmarks/gpu_attention.py

Prints a line of JSON a shape and ends with an error where cuDNN's gradients are further from float32's than
twice those of the plain form in bfloat16. On a machine without such a GPU the plain form stands for both.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.models.attention import attention, fastest_kind, plain_attention

# Length, heads, width of a head, causal: text towers, then images of B/32, B/16, L/14, H/14 and SigLIP.
SHAPES = ((77, 8, 64, True), (50, 12, 64, False), (197, 12, 64, False), (257, 16, 64, False),
          (257, 16, 80, False), (196, 12, 64, False), (64, 16, 72, False))  # fmt: skip


def errors(found, exact) -> float:
    """The largest relative error of a result and its three gradients."""
    return max(
        float(np.linalg.norm(np.float64(a) - np.float64(b)) / np.linalg.norm(np.float64(b)))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    )


def with_gradient(form, *, causal: bool):
    def loss(q, k, v, weight):
        y = form(q, k, v, causal=causal)
        return (weight * y.astype(jnp.float32)).sum(), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def milliseconds(program, arguments, rounds: int) -> float:
    jax.block_until_ready(program(*arguments))
    began = time.perf_counter()
    for _ in range(rounds):
        found = program(*arguments)
    jax.block_until_ready(found)
    return 1e3 * (time.perf_counter() - began) / rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    failed = []
    for length, heads, width, causal in SHAPES:
        keys = jax.random.split(jax.random.key(length), 4)
        shape = (asked.batch, length, heads, width)
        exact = [jax.random.normal(key, shape, jnp.bfloat16).astype(jnp.float32) for key in keys]
        rounded = [*(x.astype(jnp.bfloat16) for x in exact[:3]), exact[3]]
        device = jax.devices()[0]
        plain, fast = (with_gradient(f, causal=causal) for f in (plain_attention, attention))
        (_, y), gradients = plain(*exact)
        row = {
            "shape": shape,
            "causal": causal,
            "kind": fastest_kind(jnp.bfloat16, width, device=device),
            "device": device.device_kind,
        }
        for name, form in (("plain", plain), ("fast", fast)):
            (_, z), found = form(*rounded)
            row[f"{name}_error"] = errors((z, found), (y, gradients))
            row[f"{name}_ms"] = round(milliseconds(form, rounded, asked.rounds), 3)
        print(json.dumps(row), flush=True)
        if not row["fast_error"] < 2 * row["plain_error"]:
            failed.append(shape)
    if failed:
        raise SystemExit(f"cuDNN's attention is too far from float32's: {failed}")


if __name__ == "__main__":
    main()

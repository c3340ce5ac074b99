"""The attention kernel's time on a TPU that is not there, by libtpu's schedule, beside JAX's own kernels.

    python benchmarks/tpu_attention.py v5e 197 768 12                 # a layer of ViT-B-16, 128 images
    python benchmarks/tpu_attention.py v5e 77 512 8 --causal
    python benchmarks/tpu_attention.py v5e 197 768 12 --kernel flash  # or splash; padded to 256

A bundle of instructions is taken to be a cycle: waits for memory are not counted. Needs libtpu
(`pip install -e '.[plan]'`); each program compiles for some ten seconds.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import SingleDeviceSharding

from clip_jax.models.short_attention import short_attention, windows
from clip_jax.planning.compiler import require_libtpu
from clip_jax.planning.topologies import parse_topology

CLOCK_GHZ = {"v5e": 1.5, "v5p": 1.75, "v6e": 1.75, "tpu7x": 1.75}  # of tpu7x: not published
CORES = {"v5p": 2}  # that share a program's grid
LINE = re.compile(r"\s*0x[0-9a-f]+\s*(?:\w\w)?\s*:\s*(>*)")


def dump_to(folder: str):
    """libtpu reads this when it starts, which is when JAX first asks for a topology."""
    os.environ["LIBTPU_INIT_ARGS"] = (
        f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
        "--xla_jf_dump_llo_pass_label_regex=.*(final_bundles).*"
    )


def forms(kernel: str, length: int, width: int, heads: int, *, causal: bool, batch: int):
    """The function to be compiled and the shapes of its arguments."""
    if kernel == "ours":
        shape = jax.ShapeDtypeStruct((batch, length, 3 * width), jnp.bfloat16)
        return lambda qkv: short_attention(qkv, heads, causal, False), (shape,)
    K, L = width // heads, -(-length // 128) * 128
    shape = jax.ShapeDtypeStruct((batch, heads, L, K), jnp.bfloat16)
    if kernel == "flash":
        sizes = flash_attention.BlockSizes(
            **dict.fromkeys(flash_attention.BlockSizes.__dataclass_fields__, L) | {"block_b": 1}
        )
        form = lambda q, k, v: flash_attention.flash_attention(  # noqa: E731
            q, k, v, causal=causal, sm_scale=K**-0.5, block_sizes=sizes
        )
        return form, (shape,) * 3
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    mask = (masks.CausalMask if causal else masks.FullMask)((L, L))
    one = splash.make_splash_mha(
        mask=masks.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**{f"block_{name}": L for name in names}),
    )
    return lambda q, k, v: jax.vmap(one)(q, k, v), (shape,) * 3


def bundles(text: str) -> tuple[int, int]:
    """Of the loop inside a grid's step, and of the step outside of it."""
    depths = [len(match[1]) for line in text.splitlines() if (match := LINE.match(line))]
    return sum(depth > 1 for depth in depths), sum(depth == 1 for depth in depths)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chip", choices=CLOCK_GHZ)
    parser.add_argument("length", type=int)
    parser.add_argument("width", type=int)
    parser.add_argument("heads", type=int)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--kernel", choices=("ours", "flash", "splash"), default="ours")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clip_jax_schedules_") as folder:
        dump_to(folder)
        require_libtpu()
        jax.config.update("jax_platforms", "cpu")
        chips = f"{args.chip}:1x1" if args.chip in ("v5e", "v6e") else f"{args.chip}:1x1x1"
        device = parse_topology(chips).compile_only_devices()[0]
        form, shapes = forms(
            args.kernel, args.length, args.width, args.heads, causal=args.causal, batch=args.batch
        )

        def both(*arrays):
            out, vjp = jax.vjp(form, *arrays)
            return vjp(out)

        one = SingleDeviceSharding(device)
        jax.jit(both, in_shardings=one, out_shardings=one).lower(*shapes).compile()
        turns, steps = 1, args.batch * args.heads
        if args.kernel == "ours":  # a step of the grid is an image, a turn of its loop a group
            turns, steps = args.heads // len(windows(args.width // args.heads)), args.batch
        for file in sorted(Path(folder).glob("*-01-final_bundles.txt")):
            name = re.sub(r"^\d+-|\.\d+-01-final_bundles\.txt$", "", file.name)
            if not re.search("attention|mha", name):
                continue
            inner, outer = bundles(file.read_text())
            cycles = steps / CORES.get(args.chip, 1) * (turns * inner + outer)
            print(
                f"{name}: {inner} + {outer} bundles, {cycles / CLOCK_GHZ[args.chip] / 1e6:.3f} ms"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())

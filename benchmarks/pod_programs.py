"""What TPU pods would run, compiled without one: the loss alone, and whole train steps.

    python benchmarks/pod_programs.py            # all of it, about ten minutes on two cores
    python benchmarks/pod_programs.py loss       # the loss alone, a minute
    python benchmarks/pod_programs.py steps large gradients

Needs libtpu (`pip install -e '.[plan]'`) and prints Markdown. Memory is libtpu's own analysis
of a chip; operations are counted from its HLO, a loop as often as it runs.
"""

import argparse
import re
import sys
import time
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import softmax_loss
from clip_jax.config import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    MeshConfig,
    ModelSettings,
    TrainConfig,
)
from clip_jax.planning.backends import start, try_step
from clip_jax.planning.compiler import Compiled, compile_lowered
from clip_jax.planning.plan import make_plan
from clip_jax.planning.report import to_table
from clip_jax.planning.topologies import parse_topology

AXES = ("data",)
BATCH, EMBEDDING = 131_072, 768
MIB, GIB = 2**20, 2**30


def local_loss(z_image_BE, z_text_BE, scale):
    """The form of open_clip's --local-loss --gather-with-grad: both sides gathered, two products."""
    rows = z_image_BE.shape[0]
    own = jax.lax.axis_index(AXES) * rows + jnp.arange(rows)
    total = 0.0
    for own_BE, other_BE in ((z_image_BE, z_text_BE), (z_text_BE, z_image_BE)):
        all_BE = jax.lax.all_gather(other_BE, AXES, tiled=True)
        logits_RB = scale * own_BE @ all_BE.T
        match_R = jnp.take_along_axis(logits_RB, own[:, None], axis=1)[:, 0]
        total += (jax.nn.logsumexp(logits_RB, axis=1) - match_R).mean()
    return jax.lax.pmean(total / 2, AXES)


def ours(distributed: str, tile: int | None = None):
    return lambda i, t, s: softmax_loss(i, t, s, axis_name=AXES, distributed=distributed, tile=tile)


FORMS = {
    "open_clip's local loss": local_loss,
    "gather": ours("gather"),
    "gather, tile 128": ours("gather", 128),
    "ring": ours("ring"),
    "ring, tile 128": ours("ring", 128),
}


def compile_loss(form, dtype) -> Compiled:
    """Value and gradients of a loss over 256 chips of v5e."""
    devices = parse_topology("v5e:16x16").compile_only_devices()
    mesh = Mesh(np.array(devices), AXES)
    rows, whole = NamedSharding(mesh, P(AXES)), NamedSharding(mesh, P())
    z = jax.ShapeDtypeStruct((BATCH, EMBEDDING), dtype, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    loss = jax.shard_map(form, mesh=mesh, in_specs=(P(AXES), P(AXES), P()), out_specs=P())
    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2)), out_shardings=(whole, (rows, rows, whole))
    )
    found = compile_lowered(step.lower(z, z, scale))
    assert isinstance(found, Compiled), found
    return found


def loss_table():
    """The loss alone: temporaries and operations of each form."""
    print(f"\n## The loss alone: v5e:16x16, batch {BATCH:,}, embedding {EMBEDDING}, float32\n")
    print("| form | temporaries MiB a chip | GFLOP a chip | against local loss | collectives MB |")
    print("| --- | --- | --- | --- | --- |")
    reference = None
    for name, form in FORMS.items():
        found = compile_loss(form, jnp.float32)
        flops = found.program.flops / 1e9
        reference = reference or flops
        sent: dict[str, float] = defaultdict(float)
        for each in found.program.collectives:
            sent[each.kind] += each.count * each.bytes / 1e6
        collectives = ", ".join(f"{kind} {size:,.0f}" for kind, size in sorted(sent.items()))
        print(
            f"| {name} | {found.temporary_bytes / MIB:,.1f} | {flops:,.1f} |"
            f" {flops / reference:.2f} | {collectives} |",
            flush=True,
        )


def run(name: str, batch_size: int = 32_768, fsdp: int = 1, remat: str = "full") -> TrainConfig:
    return TrainConfig(
        steps=20_000,
        model=ModelSettings(name=name, remat=remat),
        loss=LossConfig(kind="sigmoid" if "SigLIP" in name else "softmax"),
        data=DataConfig(batch_size=batch_size),
        mesh=MeshConfig(fsdp=fsdp),
        evaluation=EvaluationConfig(batch_size=batch_size),
    )


STEPS = (
    ("v5e:16x16", run("ViT-B-16")),
    ("v5e:16x16", run("ViT-B-16", fsdp=16)),
    ("v5e:16x16", run("ViT-B-16", fsdp=256)),
    ("v5p:8x8x8", run("ViT-bigG-14", fsdp=128)),
)
LARGE = (  # with so much memory free, full rematerialisation only costs time
    ("v5p:8x8x8", run("ViT-L-14", 65_536, remat="attention")),
    ("v5p:8x8x8", run("ViT-H-14", 65_536, fsdp=8, remat="attention")),
    ("v5p:8x8x8", run("ViT-g-14", 65_536, fsdp=8, remat="attention")),
    ("v5p:8x8x8", run("ViT-bigG-14", 65_536, fsdp=16, remat="attention")),
    ("v5p:8x8x8", run("ViT-SO400M-14-SigLIP-384", 32_768, fsdp=8, remat="attention")),
)


def plans(title: str, rows):
    print(f"\n## {title}\n")
    made = []
    for topology, cfg in rows:
        began = time.monotonic()
        made.append(make_plan(cfg, parse_topology(topology), search=False))
        print(f"{topology} {cfg.model.name} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(to_table(made))
    print("\nPeak of the compiler against the estimate from shapes, GiB: " + "; ".join(
        f"{plan.model} {plan.topology} {plan.memory.peak:.2f} and {plan.memory.estimated_peak:.2f}"
        for plan in made
    ))  # fmt: skip


def gradients_table():
    """In which type the gradients of the towers are summed over the chips."""
    print("\n## Sums of gradients: ViT-B-16, batch 32,768 on v5e:16x16, data parallel\n")
    trial = try_step(run("ViT-B-16"), parse_topology("v5e:16x16"))
    sums: dict[tuple, list] = defaultdict(lambda: [0, 0])
    for each in trial.program.collectives:
        if each.kind in ("all-reduce", "reduce-scatter"):
            backward = re.search(r"transpose\(jvp\(CLIP\)\)/CLIP\.encode_(\w+)", each.source)
            of = backward.group(1) + " tower" if backward else "loss, metrics, embedding tables"
            sums[of, each.dtype][0] += each.count
            sums[of, each.dtype][1] += each.count * each.bytes
    print("| of | dtype | sums a step | MB a chip |")
    print("| --- | --- | --- | --- |")
    for (of, dtype), (count, size) in sorted(sums.items()):
        print(f"| {of} | {dtype} | {count} | {size / 1e6:.1f} |")


PARTS = {
    "loss": loss_table,
    "steps": lambda: plans("Train steps", STEPS),
    "large": lambda: plans("512 chips", LARGE),
    "gradients": gradients_table,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    start([parse_topology("v5e:16x16")])
    print(f"Made by `python benchmarks/pod_programs.py`, jax {jax.__version__}.")
    for part in parts:
        PARTS[part]()


if __name__ == "__main__":
    main()

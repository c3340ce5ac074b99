"""What GPUs would run, compiled without one: memory, time at best and kernels of whole train steps.

    python benchmarks/gpu_programs.py                        # ViT-B-32, ViT-B-16 and ViT-L-14 on one H100
    python benchmarks/gpu_programs.py --only ViT-B-16 --topology a100:1

Needs JAX's CUDA plugin (`pip install -e '.[plan-gpu]'`) and prints Markdown. The time is that of
`clip-jax plan`: each operation at the maker's peak of arithmetic or memory, whichever takes longer.
"""

import argparse
import time

from clip_jax.config import DataConfig, ModelSettings, TrainConfig
from clip_jax.planning.backends import start
from clip_jax.planning.plan import make_plan
from clip_jax.planning.topologies import parse_topology

# Architecture, pairs a GPU, remat, blocks in one turn of the loop.
PROGRAMS = (
    ("ViT-B-32", 512, "attention", 1),
    ("ViT-B-16", 256, "attention", 1),
    ("ViT-B-16", 256, "attention", 12),
    ("ViT-L-14", 128, "attention", 1),
    ("ViT-L-14", 128, "attention", 24),
)
COLUMNS = ("model", "batch", "remat", "unroll", "peak GiB", "GB", "TFLOP", "ms", "MFU", "kernels",
           "compiled in s")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="h100:1")
    parser.add_argument("--only", help="one architecture")
    parser.add_argument("--unroll", type=int, help="programs of this unroll alone")
    asked = parser.parse_args()
    topology = parse_topology(asked.topology)
    start([topology])
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for name, per_gpu, remat, unroll in PROGRAMS:
        if asked.only not in (None, name) or asked.unroll not in (None, unroll):
            continue
        cfg = TrainConfig(
            model=ModelSettings(name=name, remat=remat, unroll=unroll),
            data=DataConfig(batch_size=per_gpu * topology.devices),
        )
        began = time.monotonic()
        plan = make_plan(cfg, topology, search=False)
        took = time.monotonic() - began
        assert plan.source.startswith("compiled"), plan.source
        speed = plan.speed
        row = (
            name,
            f"{plan.batch_size:,}",
            remat,
            unroll,
            f"{plan.memory.peak:.2f}",
            f"{speed.traffic_gb:.0f}",
            f"{speed.executed_tflop:.1f}",
            f"{speed.step_s * 1e3:.1f}",
            f"{speed.mfu:.0%}",
            ", ".join(f"{count} {kernel}" for kernel, count in plan.kernels),
            f"{took:.0f}",
        )
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()

"""A train step of clip_jax and one of open_clip, in turns: images a second, their ratio, and MFU.

    python benchmarks/train_step.py --peer-python .venv-parity/bin/python
    python benchmarks/train_step.py --dtype bfloat16 --unroll 12 --peer-python .venv-parity/bin/python
    python benchmarks/train_step.py --model ViT-L-14 --dtype bfloat16 --batch 256 --peer-python ... --compile

Both train the same architecture on one resident batch: forward, softmax loss over the batch,
backward, AdamW with masked decay, the temperature's clamp. clip_jax's step also does what a run's does
(gradient norms, in-batch accuracy, skipping of steps that are not finite). Each runs in a process of
its own; while one works the other waits at a pipe. The first step of a turn is not measured; the
figure is the median over the rounds.
open_clip computes bfloat16 as its trainer does by default, by autocast ("amp_bf16"). On a CPU both
processes are given the C library's setting for large pages, unless --plain-malloc: see --help. XLA
is told to write several results in one loop, which is said to CPUs alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PAUSE_S = 0.5  # torch's threads spin for a while after their work, in the way of the other's

PEER = """
import sys, json, time
import open_clip, torch
model_name, dtype, batch, compiled = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "1"
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
torch.backends.cuda.matmul.allow_tf32 = True
model = open_clip.create_model(model_name, device=device).train()
decayed = [p for n, p in model.named_parameters() if p.ndim >= 2]
others = [p for n, p in model.named_parameters() if p.ndim < 2]
optimizer = torch.optim.AdamW(
    [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
    lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
loss_fn = open_clip.ClipLoss()
length = model.context_length
size = model.visual.image_size
size = size if isinstance(size, int) else size[0]
images = torch.randn(batch, 3, size, size, device=device)
texts = torch.randint(1, model.vocab_size - 1, (batch, length), device=device)
texts[:, -1] = model.vocab_size - 1
forward = torch.compile(model) if compiled else model
def step():
    optimizer.zero_grad()
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        image, text, scale = forward(images, texts)[:3]
        loss = loss_fn(image, text, scale)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, 4.6052)
    return loss.item()
"""

OURS = """
import sys, json, time
import jax, numpy as np
from clip_jax import sharding
from clip_jax.config import DataConfig, ModelSettings, OptimizerConfig, TrainConfig
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.training.optimizer import make_optimizer
from clip_jax.training.state import abstract_state, sharded_new_state
from clip_jax.training.step import abstract_batch, jit_train_step
model_name, dtype, batch, unroll, remat = *sys.argv[1:3], *map(int, sys.argv[3:5]), sys.argv[5]
cfg = TrainConfig(
    steps=10_000, model=ModelSettings(name=model_name, dtype=dtype), data=DataConfig(batch_size=batch),
    optimizer=OptimizerConfig(warmup_steps=100))
mesh = sharding.make_mesh(cfg.mesh)
config = model_config(model_name, dtype=dtype, unroll=unroll, remat=remat)
model = CLIP(config, constrain=sharding.constrain_batch(mesh))
optimizer = make_optimizer(cfg.optimizer, cfg.steps)
shapes = abstract_state(mesh, model=model, optimizer=optimizer)
began = time.perf_counter()
train_step = jit_train_step(mesh, shapes, model=model, optimizer=optimizer, cfg=cfg).lower(
    shapes, abstract_batch(mesh, model, batch)).compile()
compile_s = time.perf_counter() - began
state = sharded_new_state(shapes, 0, model=model, optimizer=optimizer)
rng = np.random.default_rng(0)
size, text = config.vision.image_size, config.text
data = {
    "image": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
    "tokens": rng.integers(1, text.vocab_size, (batch, text.context_length), np.int32)}
data = jax.device_put(data, sharding.batch_sharding(mesh))
def step():
    global state
    state, metrics = train_step(state, data)
    return float(metrics["loss"])
"""

LOOP = """
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    steps = int(line)
    if not steps:
        break
    step()  # the other's turn has left its own memory in the caches, and idle pages may be gone
    began = time.perf_counter()
    for _ in range(steps):
        loss = step()
    print(json.dumps({"seconds": (time.perf_counter() - began) / steps, "loss": loss}), flush=True)
"""

ABOUT = """
from clip_jax.hardware import chip_of
from clip_jax.models.flops import forward_flops
device = jax.devices()[0]
peak = getattr(device.memory_stats() or {}, "get", lambda _: None)("peak_bytes_in_use")
chip = chip_of(device.device_kind)
print(json.dumps({
    "device": device.device_kind, "jax": jax.__version__, "compile_s": compile_s,
    "flops": 3 * forward_flops(config) * batch, "peak_flops": chip and chip.device_flops,
    "peak_bytes": peak}), flush=True)
"""


class Worker:
    """A process that runs steps on request."""

    def __init__(self, python: str, code: str, *arguments, plain_malloc: bool):
        env = dict(os.environ)
        if not plain_malloc:
            # Large pages: a step's temporaries are fresh memory, of which every page is a fault.
            env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        fusion = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"
        env["XLA_FLAGS"] = f"{fusion} {env.get('XLA_FLAGS', '')}".strip()
        self._process = subprocess.Popen(
            [python, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        self.read()

    def read(self) -> dict:
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit("a worker ended early; what it said stands above")

    def steps(self, count: int) -> float:
        """Do so many steps; seconds of one."""
        time.sleep(PAUSE_S)
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self.read()["seconds"]

    def about(self) -> dict:
        self._process.stdin.write("0\n")
        self._process.stdin.flush()
        return self.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32", help="under open_clip's name")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=16, help="pairs")
    parser.add_argument("--unroll", type=int, default=1, help="clip_jax's model.unroll")
    parser.add_argument("--remat", default="none", help="clip_jax's model.remat")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="in a turn")
    parser.add_argument("--peer-python", help="of an environment with open_clip; none: ours alone")
    parser.add_argument("--compile", action="store_true", help="the peer under torch.compile")
    parser.add_argument("--plain-malloc", action="store_true", help="no large pages, for both")
    args = parser.parse_args()
    same = {"plain_malloc": args.plain_malloc}
    what = (args.model, args.dtype, args.batch)
    ours = Worker(sys.executable, OURS + LOOP + ABOUT, *what, args.unroll, args.remat, **same)
    peer = None
    if args.peer_python:
        peer = Worker(args.peer_python, PEER + LOOP, *what, int(args.compile), **same)
    both = [worker for worker in (ours, peer) if worker]
    for worker in both:
        worker.steps(2)  # first touches of memory, and the peer's compiler
    times = [[worker.steps(args.steps) for worker in both] for _ in range(args.rounds)]
    seconds = [statistics.median(column) for column in zip(*times, strict=True)]
    about = ours.about()
    result = {
        **vars(args),
        "seconds": round(seconds[0], 4),
        "images_per_second": round(args.batch / seconds[0], 2),
        "compile_seconds": round(about["compile_s"], 1),
        "device": about["device"],
        "jax": about["jax"],
    }
    if about["peak_flops"]:
        result["mfu"] = round(about["flops"] / seconds[0] / about["peak_flops"], 4)
    if about["peak_bytes"]:
        result["peak_gib"] = round(about["peak_bytes"] / 2**30, 2)
    if peer:
        result["peer_seconds"] = round(seconds[1], 4)
        result["times_the_peers_speed"] = round(seconds[1] / seconds[0], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)

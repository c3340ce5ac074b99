"""The train step compiles for GPUs on every mesh, with every loss, and in both types.

Blocks are unrolled, and the last one of each tower attends from the position that is read: no kernel.
"""

import pytest

from clip_jax.config import DataConfig, LossConfig, MeshConfig, ModelSettings, TrainConfig
from clip_jax.planning import gpu_compiler
from clip_jax.planning.compiler import GIB
from clip_jax.planning.plan import make_plan
from clip_jax.planning.topologies import parse_topology


@pytest.mark.parametrize(
    ("topology", "name"),
    [("a100:1", "ViT-B-32"), ("a100:1", "ViT-B-16"), ("a100-40gb:1", "ViT-B-32"), ("b200:1", "ViT-B-32")],
)  # fmt: skip
def test_others_take_cudnn_attention_too(topology, name, compile_for):
    runs = compile_for(topology, batch_size=8, name=name).program.kernels
    assert runs["cuDNN attention, forward"] == runs["cuDNN attention, backward"] == 22


@pytest.mark.parametrize("frozen", ["image", "text"])
def test_a_frozen_tower_runs_forward_alone(frozen, compile_for):
    runs = compile_for("h100:1", batch_size=8, name="ViT-B-32", freeze=frozen).program.kernels
    assert runs["cuDNN attention, forward"] == 22
    assert runs["cuDNN attention, backward"] == 11


def test_float32_is_computed_with_plain_attention(compile_for):
    compiled = compile_for("h100:1", batch_size=8, name="ViT-test", dtype="float32")
    assert not [kernel for kernel in compiled.program.kernels if "cuDNN" in kernel]
    assert compiled.program.float32_flops == compiled.program.flops > 0


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, {"all-gather", "all-reduce"}),
        ({"mesh": MeshConfig(fsdp=8)}, {"all-gather"}),
        ({"mesh": MeshConfig(fsdp=4)}, {"all-gather", "all-reduce"}),
        ({"accumulation": 2}, {"all-gather", "all-reduce"}),
        ({"loss": LossConfig(distributed="ring")}, {"collective-permute", "all-reduce"}),
        ({"loss": LossConfig(tile=8)}, {"all-gather", "all-reduce"}),
        (
            {"loss": LossConfig(distributed="ring", tile=4, kind="sigmoid")},
            {"collective-permute", "all-reduce"},
        ),
        ({"loss": LossConfig(kind="sigmoid")}, {"all-gather", "all-reduce"}),
        ({"dtype": "float32"}, {"all-gather", "all-reduce"}),
    ],
    ids=str,
)
def test_eight_gpus_exchange_what_their_mesh_and_loss_need(settings, kinds, compile_for):
    program = compile_for("h100:8", batch_size=64, name="ViT-test", **settings).program
    assert {each.kind for each in program.collectives} >= kinds


def test_b_16_is_trained_on_eight_gpus(compile_for):
    program = compile_for("h100:8", batch_size=64, name="ViT-B-16", remat="attention").program
    assert program.kernels["cuDNN attention, backward"] == 22
    gradients = sum(c.count * c.bytes for c in program.collectives if c.kind == "all-reduce")
    assert gradients > 4 * 149e6  # of all parameters, in float32
    assert {c.dtype for c in program.collectives if c.kind == "all-reduce"} == {"f32"}


def test_two_machines_of_eight_are_one_mesh(compile_for):
    program = compile_for("h100:16", batch_size=64, name="ViT-test").program
    assert max(len(each.group) for each in program.collectives) == 16


def test_a_plan_has_the_compiler_s_memory_and_kernels_and_is_no_estimate(monkeypatch):
    compile_for_gpus, seen = gpu_compiler.compile_for_gpus, []

    def noted(step):
        seen.append(compile_for_gpus(step))
        return seen[-1]

    monkeypatch.setattr(gpu_compiler, "compile_for_gpus", noted)
    cfg = TrainConfig(model=ModelSettings(name="ViT-test"), data=DataConfig(batch_size=64))
    plan = make_plan(cfg, parse_topology("h100:1"), search=False)
    (compiled,) = seen
    assert plan.source.startswith("compiled by XLA") and "ESTIMATE" not in plan.source
    assert plan.memory.peak * GIB == pytest.approx(compiled.peak_bytes)
    assert dict(plan.kernels) == compiled.program.kernels
    assert plan.kernels and plan.speed.traffic_gb > 0

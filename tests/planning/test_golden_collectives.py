"""What a whole train step sends, for each mesh: a stray gather shows as another row."""

import jax
import pytest

from clip_jax.config import DataConfig, LossConfig, MeshConfig, ModelSettings, TrainConfig
from clip_jax.planning.hlo.partitioned import compile_for_text, read_partitioned
from clip_jax.planning.plan import exchanges
from clip_jax.planning.steps import make_step
from clip_jax.planning.topologies import parse_topology

MESHES = {"8x1": 1, "4x2": 2, "2x4": 4}


def sent(fsdp: int, distributed: str) -> list[tuple]:
    cfg = TrainConfig(
        model=ModelSettings(name="ViT-test", remat="full", dtype="float32"),
        data=DataConfig(batch_size=64),
        mesh=MeshConfig(fsdp=fsdp),
        loss=LossConfig(distributed=distributed),
    )
    step = make_step(cfg, jax.devices())
    program = read_partitioned(compile_for_text(step.lower()), fused_attention=False)
    rows = exchanges(program, step.mesh, parse_topology("h100:8"))
    return sorted((row.kind, row.axis, row.dtype, row.count, row.bytes) for row in rows)


@pytest.fixture(scope="module")
def found():
    return {name: sent(fsdp, "gather") for name, fsdp in MESHES.items()}


GOLDEN = {
    "2x4": [
        ("all-gather", "data+fsdp", "f32", 2, 8192),
        ("all-gather", "fsdp", "f32", 38, 300672),
        ("all-reduce", "data", "f32", 19, 39936),
        ("all-reduce", "data+fsdp", "f32", 52, 17300),
        ("all-reduce", "fsdp", "f32", 33, 159800),
        ("reduce-scatter", "data+fsdp", "f32", 1, 4096),
    ],
    "4x2": [
        ("all-gather", "data+fsdp", "f32", 2, 8192),
        ("all-gather", "fsdp", "f32", 38, 300672),
        ("all-reduce", "data", "f32", 19, 79872),
        ("all-reduce", "data+fsdp", "f32", 52, 17300),
        ("all-reduce", "fsdp", "f32", 33, 159800),
        ("reduce-scatter", "data+fsdp", "f32", 1, 4096),
    ],
    "8x1": [
        ("all-gather", "data", "f32", 2, 8192),
        ("all-reduce", "data", "f32", 71, 177044),
        ("reduce-scatter", "data", "f32", 1, 4096),
    ],
}


@pytest.mark.parametrize("mesh_name", MESHES)
def test_a_step_sends_what_it_must_and_nothing_else(found, mesh_name):
    assert found[mesh_name] == GOLDEN[mesh_name]

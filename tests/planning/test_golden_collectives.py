"""What a whole train step sends, for each mesh: a stray gather shows as another row."""

import jax
import pytest

from clip_jax.config import (
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelSettings,
    OptimizerConfig,
    TrainConfig,
)
from clip_jax.planning.hlo.partitioned import compile_for_text, read_partitioned
from clip_jax.planning.plan import exchanges
from clip_jax.planning.steps import make_step
from clip_jax.planning.topologies import parse_topology

MESHES = {"8x1": 1, "4x2": 2, "2x4": 4}


def sent(fsdp: int, distributed: str, *, tile: int | None = None, zero=False) -> list[tuple]:
    cfg = TrainConfig(
        model=ModelSettings(name="ViT-test", remat="full", dtype="float32"),
        data=DataConfig(batch_size=64),
        mesh=MeshConfig(fsdp=fsdp),
        loss=LossConfig(distributed=distributed, tile=tile),
        optimizer=OptimizerConfig(shard_over_data=zero),
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
        ("all-gather", "data+fsdp", "f32", 1, 4096),
        ("all-gather", "fsdp", "f32", 38, 300672),
        ("all-reduce", "data", "f32", 19, 39936),
        ("all-reduce", "data+fsdp", "f32", 51, 17044),
        ("all-reduce", "fsdp", "f32", 47, 159856),
        ("reduce-scatter", "data+fsdp", "f32", 1, 4096),
    ],
    "4x2": [
        ("all-gather", "data+fsdp", "f32", 1, 4096),
        ("all-gather", "fsdp", "f32", 38, 300672),
        ("all-reduce", "data", "f32", 19, 79872),
        ("all-reduce", "data+fsdp", "f32", 51, 17044),
        ("all-reduce", "fsdp", "f32", 47, 159856),
        ("reduce-scatter", "data+fsdp", "f32", 1, 4096),
    ],
    "8x1": [
        ("all-gather", "data", "f32", 1, 4096),
        ("all-reduce", "data", "f32", 70, 176788),
        ("reduce-scatter", "data", "f32", 1, 4096),
    ],
}


@pytest.mark.parametrize("mesh_name", MESHES)
def test_a_step_sends_what_it_must_and_nothing_else(found, mesh_name):
    assert found[mesh_name] == GOLDEN[mesh_name]


@pytest.mark.parametrize("tile", [None, 4])
def test_a_ring_gathers_no_texts(tile):
    """Nor do the metrics: what is gathered are parameters, along fsdp."""
    rows = sent(2, "ring", tile=tile)
    assert {axis for kind, axis, *_ in rows if kind == "all-gather"} == {"fsdp"}
    assert not [row for row in rows if row[0] in ("reduce-scatter", "all-to-all")]
    sums = {axis: size for kind, axis, _, _, size in rows if kind == "all-reduce"}
    gathered = {axis: size for kind, axis, _, _, size in GOLDEN["4x2"] if kind == "all-reduce"}
    assert sums["data+fsdp"] <= gathered["data+fsdp"]
    assert [row[0] for row in rows].count("collective-permute")


def test_tiles_gather_the_texts_once(found):
    assert sent(2, "gather", tile=4) == found["4x2"]


def test_moments_over_the_data_axis_add_one_gather_of_the_parameters(found):
    plain, split = found["4x2"], sent(2, "gather", zero=True)
    assert [row for row in split if row[:2] == ("all-gather", "data")] == [
        ("all-gather", "data", "f32", 7, 69632)
    ]
    for kind, axis in (("all-gather", "fsdp"), ("all-gather", "data+fsdp")):
        assert [r for r in split if r[:2] == (kind, axis)] == [
            r for r in plain if r[:2] == (kind, axis)
        ]

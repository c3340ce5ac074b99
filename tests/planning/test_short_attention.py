"""The TPU's attention kernel, compiled by libtpu for chips that are not here."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from clip_jax.config import (
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    ModelSettings,
    TextConfig,
    TrainConfig,
    VisionTransformerConfig,
)
from clip_jax.models.short_attention import short_attention
from clip_jax.planning import steps as steps_lib
from clip_jax.planning.compiler import Compiled, compile_lowered, compile_step, require_libtpu
from clip_jax.planning.topologies import parse_topology

KERNEL = "tpu_custom_call"


def gradient(heads: int, causal: bool):
    form = lambda qkv_BLX: short_attention(qkv_BLX, heads, causal, False)  # noqa: E731
    loss = lambda qkv_BLX: jnp.square(form(qkv_BLX)).sum(dtype=jnp.float32)  # noqa: E731
    return jax.jit(jax.grad(loss))


@pytest.mark.parametrize(
    ("L", "head_width", "heads"),
    [(77, 64, 8), (257, 64, 16), (513, 64, 16), (729, 72, 16), (257, 80, 16), (257, 88, 16),
     (50, 96, 8), (257, 104, 16), (1024, 128, 8)],
)  # fmt: skip
def test_mosaic_takes_every_head_width_and_length(L, head_width, heads):
    qkv_BLX = jax.ShapeDtypeStruct((2, L, 3 * heads * head_width), jnp.bfloat16)
    for causal in (False, True):
        lowered = gradient(heads, causal).trace(qkv_BLX).lower(lowering_platforms=("tpu",))
        assert lowered.as_text().count(KERNEL) == 2


@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:1x1x1", "v6e:1x1", "tpu7x:1x1x1"])
def test_every_chips_compiler_takes_the_kernel(topology):
    require_libtpu()
    device = parse_topology(topology).compile_only_devices()[0]
    qkv_BLX = jax.ShapeDtypeStruct(
        (4, 197, 3 * 128), jnp.bfloat16, sharding=SingleDeviceSharding(device)
    )
    found = compile_lowered(gradient(2, True).lower(qkv_BLX))
    assert isinstance(found, Compiled)


def test_a_step_over_a_mesh_takes_it_in_every_block_and_fits_its_batch(monkeypatch):
    """Scanned, rematerialised, parameters over fsdp: each device attends to its own rows."""
    require_libtpu()
    config = ModelConfig(
        embed_dim=128,
        vision=VisionTransformerConfig(
            image_size=64, patch_size=16, width=128, depth=2, heads=2, mlp_width=256
        ),
        text=TextConfig(vocab_size=256, width=128, depth=2, heads=2, mlp_width=256),
        dtype="bfloat16",
        remat="attention",
    )
    monkeypatch.setattr(steps_lib.setup, "named_model", lambda cfg: config)
    cfg = TrainConfig(
        model=ModelSettings(remat="attention"),
        data=DataConfig(batch_size=16),
        evaluation=EvaluationConfig(batch_size=16),
        mesh=MeshConfig(fsdp=2),
    )
    step = steps_lib.make_step(cfg, parse_topology("v5e:2x2").compile_only_devices())
    assert step.lower().as_text().count(KERNEL) == 4  # forward and backward, of two towers
    assert isinstance(compile_step(step), Compiled)
    plain = dataclasses.replace(config, attention="plain")
    monkeypatch.setattr(steps_lib.setup, "named_model", lambda cfg: plain)
    step = steps_lib.make_step(cfg, parse_topology("v5e:2x2").compile_only_devices())
    assert step.lower().as_text().count(KERNEL) == 0

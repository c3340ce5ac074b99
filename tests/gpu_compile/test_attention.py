"""cuDNN's attention, forward and backward, compiles for every registered shape, and is split over GPUs."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.config import MeshConfig, ResNetConfig
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.attention import attention
from clip_jax.planning import gpu_compiler
from clip_jax.planning.topologies import parse_topology

SHAPES = sorted(
    {(c.text.context_length, c.text.width // c.text.heads, c.text.causal)
     for c in ARCHITECTURES.values()}
    | {(c.vision.grid**2 + c.vision.class_token, c.vision.width // c.vision.heads, False)
       for c in ARCHITECTURES.values() if not isinstance(c.vision, ResNetConfig)}
)  # fmt: skip


def compiled_text(topology: str, *, batch: int, length: int, width: int, causal: bool) -> str:
    devices = gpu_compiler.compile_only_devices(parse_topology(topology))
    mesh = sharding.make_mesh(MeshConfig(), devices)
    rows = NamedSharding(mesh, P(mesh.axis_names))
    x = jax.ShapeDtypeStruct((batch, length, 2, width), jnp.bfloat16, sharding=rows)

    def loss(q, k, v):
        return attention(q, k, v, causal=causal).astype(jnp.float32).sum()

    with gpu_compiler.absent_gpu(devices[0]):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x)
    return lowered.compile().as_text()


@pytest.mark.parametrize("topology", ["h100:1", "a100:1"])
@pytest.mark.parametrize(("length", "width", "causal"), SHAPES)
def test_the_attention_of_every_architecture_compiles(length, width, causal, topology):
    text = compiled_text(topology, batch=4, length=length, width=width, causal=causal)
    assert '"__cudnn$fmhaSoftmax"' in text
    assert '"__cudnn$fmhaSoftmaxBackward"' in text


def test_each_gpu_is_given_the_lengths_of_its_own_rows():
    text = compiled_text("h100:8", batch=64, length=197, width=64, causal=False)
    calls = [line for line in text.splitlines() if '"__cudnn$fmha' in line]
    assert len(calls) == 2
    assert all(re.findall(r"s32\[\d+\]", call) == ["s32[8]"] * 2 for call in calls)
    assert "all-gather" not in text

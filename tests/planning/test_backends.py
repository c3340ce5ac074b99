"""A step is tried on TPUs by libtpu, and on GPUs by an estimate where JAX's CUDA plugin is not installed."""

import dataclasses
import os
from pathlib import Path

import pytest

from clip_jax.config import DataConfig, ModelSettings, TrainConfig
from clip_jax.config_io import read_config
from clip_jax.models.architectures import model_config
from clip_jax.planning import backends, memory
from clip_jax.planning.backends import (
    available_bytes,
    devices_of,
    estimated_bytes,
    start,
    try_step,
)
from clip_jax.planning.plan import make_plan
from clip_jax.planning.steps import Step, make_step, refusals
from clip_jax.planning.topologies import parse_topology
from clip_jax.sharding import make_mesh

CONFIGS = Path(__file__).parents[2] / "configs"
H100 = parse_topology("h100:8")
# Small enough to compile in seconds.
pytestmark = pytest.mark.usefixtures("no_cuda_plugin")
CFG = TrainConfig(
    model=ModelSettings(name="ViT-test", remat="full"), data=DataConfig(batch_size=64)
)


@pytest.fixture
def no_cuda_plugin(monkeypatch):
    monkeypatch.setattr(backends.gpu_compiler, "is_installed", lambda: False)


def test_gpus_are_estimated_from_shapes_and_a_partitioned_program():
    trial = try_step(CFG, parse_topology("h100:8"))
    assert trial.fits
    assert trial.program.flops > 0
    assert trial.needed_bytes == trial.estimated_bytes
    assert trial.source.startswith("ESTIMATE")
    assert "pip install -e '.[plan-gpu]'" in trial.source
    assert trial.available_bytes == 0.75 * 80e9
    assert {c.kind for c in trial.program.collectives} >= {"all-gather", "all-reduce"}


def test_a_gpu_s_memory_is_known_without_its_program():
    assert try_step(CFG, parse_topology("h100:8"), read=False).program is None


@pytest.mark.parametrize(
    ("config", "topology"),
    [
        ("datacomp_small", "h100:1"),
        ("datacomp_large", "h100:8"),
        ("laion400m_vit_b_32", "h100:8"),
        ("laion400m_vit_b_32", "v5e-64"),
        ("laion400m_vit_b_16", "v5e-256"),
        ("laion400m_vit_l_14", "v5p-512"),
        ("clipa_b_16_pretrain", "h100:8"),
        ("clipa_b_16_pretrain", "v5e-64"),
        ("clipa_b_16_tune", "h100:8"),
        ("lit_l_14", "h100:8"),
        ("lit_l_14", "v5e-64"),
        ("finetune_pairs", "h100:1"),
    ],
)
def test_a_config_fits_the_hardware_that_it_names(config, topology):
    """From shapes alone, which is within a tenth of what compilers say (`test_memory`)."""
    place = parse_topology(topology)
    step = make_step(read_config(CONFIGS / f"{config}.py"), devices_of(place))
    assert estimated_bytes(step, place) <= available_bytes(place)


def test_an_estimate_is_of_blocks_as_the_gpu_would_have_them():
    """CPU devices stand for it, on which `model.unroll=None` means a loop."""
    plan = make_plan(CFG, parse_topology("h100:1"), search=False, propose=True)
    assert plan.unroll == 2
    assert plan.proposal.change.endswith("--model.unroll 2")


def test_one_gpu_needs_no_partitioning():
    trial = try_step(CFG, parse_topology("h200:1"))
    assert trial.program.flops > 0


@pytest.mark.parametrize(
    ("topology", "name", "settings", "forms"),
    [
        ("h100:8", "ViT-B-32", {}, ["fused", "fused"]),
        ("h100:8", "ViT-B-32", {"attention": "cudnn"}, ["fused", "fused"]),
        ("h100:8", "ViT-B-32", {"dtype": "float32"}, ["plain", "plain"]),
        ("h100:8", "ViT-B-32", {"attention": "plain"}, ["plain", "plain"]),
        ("v5e:2x2", "ViT-test", {}, ["padded", "padded"]),  # narrower than a register
        ("v5e:2x2", "ViT-B-32", {}, ["fused", "fused"]),
        ("v5e:2x2", "ViT-B-32", {"attention": "plain"}, ["padded", "padded"]),
        ("v5e:2x2", "ViT-bigG-14-CLIPA-336", {}, ["padded", "fused"]),  # 577 x 1664
        ("v5e:2x2", "RN50", {}, ["plain", "fused"]),  # no blocks
    ],
    ids=str,
)
def test_attention_is_as_the_backend_has_it(topology, name, settings, forms):
    """A step without a model: nothing is traced."""
    place = parse_topology(topology)
    cfg = dataclasses.replace(CFG, model=ModelSettings(name=name, **settings))
    config = model_config(name, dtype=cfg.model.dtype)
    step = Step(cfg, make_mesh(cfg.mesh, list(devices_of(place))), config, None, None)
    lengths = {"image": 577 if "336" in name else 50, "text": 77}
    assert forms == [
        memory.logits_of(step, tower, backends.target_of(place, step.mesh.devices.flat[0]))(
            lengths[side]
        )
        for side, tower in config.towers.items()
    ]
    if name == "RN50":  # at 256 pixels it has arrays of 64 x 64 x 64, which are no logits
        of_convolutions = memory.logits_of(step, config.vision)
        assert memory._bytes((1, 64, 64, 64), 2, of_convolutions) == 2 * 64**3


def test_a_plan_may_ask_for_the_kernel_that_only_gpus_have():
    cfg = dataclasses.replace(CFG, model=dataclasses.replace(CFG.model, attention="cudnn"))
    trial = try_step(cfg, H100, read=False)
    assert not [text for text in refusals(cfg, trial.step.mesh) if "attention" in text]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"attention": "cudnn", "dtype": "float32"},
            r"model\.attention=cudnn needs dtype=bfloat16",
        ),
        ({"attention": "pallas"}, r"model\.attention=pallas needs a TPU"),
    ],
    ids=str,
)
def test_a_plan_refuses_an_attention_that_gpus_would_not_have(settings, says):
    model = dataclasses.replace(CFG.model, **settings)
    with pytest.raises(ValueError, match=says):
        try_step(dataclasses.replace(CFG, model=model), H100, read=False)


def test_too_few_devices_to_stand_for_gpus_are_refused_with_the_mend():
    with pytest.raises(ValueError, match="JAX_NUM_CPU_DEVICES=16"):
        devices_of(parse_topology("h100:16"))


def test_too_many_gpus_are_refused_at_the_start():
    with pytest.raises(ValueError, match="at most 1024 GPUs can be estimated"):
        start([parse_topology("h100:2048")])


def test_libtpu_starts_in_silence_and_beside_others(monkeypatch):
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(backends.jax.config, "update", lambda *_: None)
    start([parse_topology("v5e:2x2")])
    assert os.environ["TPU_SKIP_MDS_QUERY"] == os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"

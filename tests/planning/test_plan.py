"""A plan holds together: its parts add up, and its speed follows from its program."""

import dataclasses
import math

import pytest

from clip_jax.config import DataConfig, ModelSettings, TrainConfig
from clip_jax.models.architectures import model_config
from clip_jax.models.flops import training_flops
from clip_jax.planning.plan import IMAGES_PER_CORE, Attempt, Plan, _proposal, make_plan
from clip_jax.planning.topologies import parse_topology

CFG = TrainConfig(
    steps=20_000, model=ModelSettings(name="ViT-test"), data=DataConfig(batch_size=64)
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    cfg = dataclasses.replace(CFG, model=ModelSettings(name="ViT-test", remat="full"))
    return make_plan(cfg, parse_topology("v5e:2x2"), search=False, propose=True)


def test_memory_adds_up_to_the_peak(plan):
    m = plan.memory
    assert m.parameters + m.optimizer + m.batch + m.activations == pytest.approx(m.peak)
    assert plan.fits
    assert m.peak < m.available == 15.75


def test_utilisation_is_of_the_model_s_operations(plan):
    s = plan.speed
    flops = training_flops(model_config("ViT-test")) * 64
    assert s.model_tflop * 4e12 == pytest.approx(flops)
    assert s.mfu == pytest.approx(flops / s.step_s / (4 * 197e12))
    assert s.images_per_second == pytest.approx(64 / s.step_s)
    assert s.executed_tflop >= 0.9 * s.model_tflop


def test_gradients_are_exchanged_along_the_data_axis(plan):
    rows = {(row.kind, row.axis) for row in plan.exchanges}
    assert ("all-reduce", "data") in rows


def test_gradients_are_summed_in_float32(plan):
    sums = [row for row in plan.exchanges if row.kind in ("all-reduce", "reduce-scatter")]
    assert max(sums, key=lambda row: row.bytes).dtype == "f32"
    rounded = sum(row.bytes for row in sums if row.dtype == "bf16")
    assert rounded < 0.05 * sum(row.bytes for row in sums)


def test_hosts_need_cores_by_the_rate_of_a_core(plan):
    assert plan.speed.cores_per_host == math.ceil(plan.speed.images_per_second / IMAGES_PER_CORE)


def test_a_run_that_does_not_fit_gets_changes_that_were_tried():
    cfg = dataclasses.replace(
        CFG,
        model=ModelSettings(name="ViT-L-14", remat="none"),
        data=DataConfig(batch_size=4096),
    )
    plan = make_plan(cfg, parse_topology("h100:8"))
    assert not plan.fits
    assert plan.speed is None
    assert plan.suggestions
    assert any(each.fits for each in plan.suggestions)
    assert plan.largest_batch.fits
    assert plan.largest_batch.peak_gib < plan.memory.available


def test_the_three_figures_stand_in_order(plan):
    s = plan.speed
    assert s.lower_s <= s.step_s <= s.compiler_s
    assert s.traffic_gb <= s.tiled_gb
    assert s.executed_tflop <= s.padded_tflop
    assert s.unpriced == ()


def attempts(*rows: tuple[str, float, float]) -> tuple[Attempt, ...]:
    return tuple(Attempt(change, True, peak, seconds) for change, peak, seconds in rows)


def test_a_proposal_leaves_room_and_changes_nothing_for_little():
    tried = attempts(("none", 95.0, 1.0), ("dots", 80.0, 1.1), ("full", 40.0, 1.115))
    assert _proposal(tried, "attention", 100.0).change == "dots"
    assert _proposal(tried, "full", 100.0).change == "full"
    assert _proposal(tried, "full", 42.0) is None


def test_a_proposal_was_compiled_and_is_no_slower(plan):
    assert {each.change.split()[1] for each in plan.tried} == {"none", "dots", "attention", "full"}
    assert len(plan.tried) <= 6
    assert plan.proposal in plan.tried
    assert plan.proposal.step_s <= plan.speed.step_s


def test_what_training_would_refuse_is_part_of_the_plan():
    plan = make_plan(dataclasses.replace(CFG, steps=5), parse_topology("h200:1"), search=False)
    assert any("optimizer.warmup_steps" in text for text in plan.refusals)

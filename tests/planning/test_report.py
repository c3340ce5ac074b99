"""A plan in words, as a row of a table and as JSON says the same."""

import dataclasses
import json

import pytest

from clip_jax.planning.plan import Attempt, Exchange, MemoryGiB, Plan, Speed
from clip_jax.planning.report import to_table, to_text, write_json


@pytest.fixture
def plan() -> Plan:
    return Plan(
        topology="v5e:16x16", chip="TPU v5e", chips=256, devices=256, hosts=64,
        source="compiled by libtpu for these chips", model="ViT-B-16", parameters=149_620_737,
        remat="full", unroll=1, dtype="bfloat16", mesh={"data": 16, "fsdp": 16}, batch_size=32_768,
        accumulation=2, fits=True,
        memory=MemoryGiB(0.5, 1.0, 0.25, 2.25, 4.0, 15.75, 4.1),
        exchanges=(Exchange("all-reduce", "data", 1, "f32", 12, 5_000_000, synchronous=True),),
        speed=Speed(
            model_tflop=10.0, executed_tflop=14.0, padded_tflop=15.5, traffic_gb=150.0,
            tiled_gb=180.0, compute_s=0.066, memory_s=0.03, exposed_s=0.004, hidden_s=0.001,
            lower_s=0.09, step_s=0.1, compiler_s=0.25, compiler_cycles=375_000_000,
            bound="compute", images_per_second=327_680.0, images_per_second_per_chip=1280.0,
            mfu=0.5, cores_per_host=7,
        ),
        largest_batch=Attempt("--data.batch-size 131072", True, 15.0),
    )  # fmt: skip


def test_the_text_says_what_was_found(plan):
    text = to_text(plan)
    for said in (
        "ViT-B-16 (149.6 M parameters, bfloat16, remat full) on v5e:16x16: 256 TPU v5e",
        "batch 32,768 (128 a device), mesh data 16 x fsdp 16, accumulation 2",
        "FITS: peak 4.00 of 15.75 GiB",
        "largest batch found: --data.batch-size 131072",
        "at best 100.0 ms a step, bound by compute: compute 66.0, memory 30.0, collectives that "
        "nothing hides 4.0 ms (and 1.0 hidden",
        "without the padding of tiles and matrix units 90.0 ms; by the compiler's own estimate "
        "250.0 ms",
        "executed 14.00 (15.50 padded), 150 GB to and from memory (180 in whole tiles)",
        "327,680 images/s, 1,280 a chip, MFU 50%",
        "7 cores a host to feed it (64 hosts)",
    ):
        assert said in text
    (row,) = (line for line in text.splitlines() if "all-reduce" in line)
    assert row.split() == ["all-reduce", "data", "f32", "12", "5.00", "alone"]


def test_an_unrolled_loop_is_part_of_the_title(plan):
    text = to_text(dataclasses.replace(plan, unroll=12))
    assert "bfloat16, remat full, unroll 12) on v5e:16x16" in text


def test_an_unknown_clock_leaves_cycles(plan):
    speed = dataclasses.replace(plan.speed, compiler_s=None)
    assert "375,000,000 cycles (the clock of TPU v5e is unknown)" in to_text(
        dataclasses.replace(plan, speed=speed)
    )
    none = dataclasses.replace(speed, compiler_cycles=0)
    text = to_text(dataclasses.replace(plan, speed=none))
    assert "by the compiler's own estimate unknown" in text


def test_a_storage_that_limits_is_named(plan):
    for rate, limits in ((4000.0, True), (6000.0, False)):
        speed = dataclasses.replace(plan.speed, host_images_per_second=rate)
        text = to_text(dataclasses.replace(plan, speed=speed))
        assert f"a host takes 5,120 images/s and its storage gives {rate:,.0f}" in text
        assert ("STORAGE LIMITS" in text) == limits


def test_kernels_without_a_cost_are_named(plan):
    speed = dataclasses.replace(plan.speed, unpriced=("attention.1", "attention.2"))
    text = to_text(dataclasses.replace(plan, speed=speed))
    assert "WITHOUT the operations of 2 kernels" in text
    assert "attention.1, attention.2" in text


def test_the_proposal_is_given_as_settings(plan):
    tried = (
        Attempt("--model.remat none --model.unroll 1", True, 15.5, 0.08),
        Attempt("--model.remat attention --model.unroll 1", True, 9.0, 0.09),
        Attempt("--model.remat full --model.unroll 1", True, 4.0, 0.1),
    )
    found = dataclasses.replace(plan, tried=tried, proposal=tried[1])
    assert "proposal: --model.remat attention --model.unroll 1\n" in to_text(found) + "\n"
    same = dataclasses.replace(plan, tried=tried, proposal=tried[2])
    assert "proposal: --model.remat full --model.unroll 1 (as it is)" in to_text(same)
    assert "no proposal" in to_text(dataclasses.replace(plan, tried=tried))


def test_what_does_not_fit_says_what_was_tried(plan):
    tried = (Attempt("--model.remat dots", False, 20.0), Attempt("--mesh.fsdp 8", True, 9.0))
    text = to_text(dataclasses.replace(plan, fits=False, speed=None, suggestions=tried))
    assert "DOES NOT FIT" in text
    assert "tried --model.remat dots: does not fit, peak 20.00 GiB" in text
    assert "tried --mesh.fsdp 8: fits, peak 9.00 GiB" in text


def test_a_table_has_a_row_for_each_plan(plan):
    smaller = dataclasses.replace(
        plan, topology="h100:8", fits=False, speed=None, largest_batch=None
    )
    lines = to_table([plan, smaller]).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:5] == ["v5e:16x16", "ViT-B-16", "32,768", "16x16", "full"]
    assert cells[-4:] == ["327,680", "1,280", "50%", "7"]


def test_json_holds_all_of_it(plan, tmp_path):
    path = tmp_path / "a folder of its own" / "plan.json"
    write_json([plan], path)
    (read,) = json.loads(path.read_text())
    assert read == json.loads(json.dumps(dataclasses.asdict(plan)))

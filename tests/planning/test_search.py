"""The search ends at a batch that was compiled, and tries changes from the cheapest on."""

import dataclasses

import jax
import pytest

from clip_jax.config import DataConfig, LossConfig, ModelSettings, TrainConfig
from clip_jax.planning import search
from clip_jax.planning.backends import Trial
from clip_jax.planning.hlo.module import Program, Work
from clip_jax.planning.steps import make_step
from clip_jax.planning.topologies import parse_topology

TOPOLOGY = parse_topology("h100:8")
# With a tile, memory grows in a straight line with the batch, as the stand-in below has it.
CFG = TrainConfig(
    model=ModelSettings(name="ViT-test", unroll=1),
    data=DataConfig(batch_size=256),
    loss=LossConfig(distributed="ring", tile=8),
)


def compiler(step, *, fixed: float, a_row: float, available: float):
    """A compiler by whose verdict memory is fixed + a_row times the rows of a device."""
    asked = []

    def trial_of(cfg: TrainConfig) -> Trial:
        rows = cfg.data.batch_size // step.mesh.size // cfg.data.accumulation
        if cfg.model.remat != "none":
            rows /= 4
        asked.append(cfg)
        changed = dataclasses.replace(step, cfg=cfg)
        return Trial(changed, fixed + a_row * rows, available, 0.0, None, "a test")

    return trial_of, asked


@pytest.fixture(scope="module")
def step():
    return make_step(CFG, jax.devices())


@pytest.mark.parametrize("a_row", [3e4, 1e5, 4e5])
def test_the_largest_batch_comes_near_the_limit_and_fits(step, a_row):
    """Whatever the estimate thinks of a row, verdicts move it."""
    trial_of, asked = compiler(step, fixed=1e8, a_row=a_row, available=1e9)
    first, best = search.try_with_largest(step, TOPOLOGY, trial_of, available=1e9)
    assert first.fits
    assert best.fits
    assert best.needed_bytes >= 0.85 * best.available_bytes
    assert best.step.cfg.data.batch_size % 64 == 0
    assert len(asked) <= 4


def test_a_batch_that_is_refused_leads_to_a_smaller_one(step):
    trial_of, _ = compiler(step, fixed=1e8, a_row=1e8, available=1e9)
    first, best = search.try_with_largest(step, TOPOLOGY, trial_of, available=1e9)
    assert not first.fits
    assert best.fits
    assert best.step.cfg.data.batch_size < 256


def test_there_is_no_largest_batch_where_the_state_alone_is_too_large(step):
    trial_of, _ = compiler(step, fixed=2e9, a_row=1e6, available=1e9)
    first, best = search.try_with_largest(step, TOPOLOGY, trial_of, available=1e9)
    assert (first.fits, best) == (False, None)


def test_changes_of_each_kind_are_tried_from_the_cheapest(step):
    trial_of, _ = compiler(step, fixed=1e8, a_row=1e8, available=1e9)
    tried = search.fitting_changes(trial_of(CFG), TOPOLOGY, trial_of)
    names = [name for name, _ in tried]
    assert names[0] == "--model.remat dots"
    assert names[1:3] == ["--mesh.fsdp 2", "--mesh.fsdp 4"]
    assert names[3:] == ["--data.accumulation 2", "--data.accumulation 4"]
    assert [trial.fits for _, trial in tried] == [True, False, False, False, True]


SECONDS = {"none": 1.0, "dots": 1.2, "attention": 1.1, "full": 1.4}


def compiled_steps(step, peaks: dict[str, float]):
    """A compiler of steps that need so much of 10 bytes, by rematerialisation."""
    asked = []

    def trial_of(cfg: TrainConfig) -> Trial:
        asked.append((cfg.model.remat, cfg.model.unroll))
        changed = dataclasses.replace(step, cfg=cfg)
        return Trial(
            changed, peaks[cfg.model.remat], 10.0, 0.0, Program([Work(1, 0, 0, 1)]), "a test"
        )

    def seconds_of(trial: Trial) -> float:
        model = trial.step.cfg.model
        return SECONDS[model.remat] / (1.1 if model.unroll > 1 else 1.0)

    return trial_of, seconds_of, asked


def test_the_fastest_that_fits_is_unrolled_too(step):
    peaks = {"none": 11.0, "dots": 9.0, "attention": 8.0, "full": 5.0}
    trial_of, seconds_of, asked = compiled_steps(step, peaks)
    first = trial_of(CFG)
    asked.clear()
    found = search.by_speed(first, trial_of, seconds_of)
    depth = step.config.vision.depth
    assert [trial.step.cfg.model.remat for _, trial in found][:2] == ["attention", "attention"]
    assert [seconds for seconds, _ in found] == sorted(seconds for seconds, _ in found)
    assert sorted(asked[:4]) == sorted((remat, 1) for remat in SECONDS)
    assert asked[4:] == [("attention", depth)]
    assert "none" not in {trial.step.cfg.model.remat for _, trial in found}


def test_an_estimate_is_asked_for_no_unrolling(step):
    trial_of, seconds_of, asked = compiled_steps(step, dict.fromkeys(SECONDS, 5.0))
    found = search.by_speed(trial_of(CFG), trial_of, seconds_of, unroll=False)
    assert [seconds for seconds, _ in found] == sorted(SECONDS.values())
    assert {unroll for _, unroll in asked} == {1}


def test_nothing_is_proposed_where_nothing_fits(step):
    trial_of, seconds_of, _ = compiled_steps(step, dict.fromkeys(SECONDS, 11.0))
    assert search.by_speed(trial_of(CFG), trial_of, seconds_of) == []

"""Which checkpoints stay, in folders that real saves have filled."""

import json
import math
import types
from pathlib import Path

import jax.numpy as jnp
import pytest
from etils import epath

from clip_jax.config import CheckpointConfig
from clip_jax.runs import retention
from clip_jax.runs.checkpoints import Checkpoints


def save(directory, steps, cfg, metrics=None, better="higher"):
    with Checkpoints(directory, cfg, better=better) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"x": jnp.zeros(1)}, metadata={})
            if metrics:
                checkpoints.record(step, metrics)


def steps_in(directory) -> list[int]:
    return sorted(int(path.name) for path in Path(directory).iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("keep_last", "every", "left"),
    [(1, None, [10]), (3, None, [8, 9, 10]), (2, 4, [4, 8, 9, 10]), (1, 5, [5, 10])],
)
def test_the_last_ones_and_every_kth_are_kept(tmp_path, keep_last, every, left):
    cfg = CheckpointConfig(
        every_steps=1, every_minutes=None, keep_last=keep_last, keep_every_steps=every
    )
    save(tmp_path, range(1, 6), cfg)
    save(tmp_path, range(6, 11), cfg)  # the rules hold across a restart
    assert steps_in(tmp_path) == left


@pytest.mark.parametrize(("better", "best"), [("higher", 3), ("lower", 2)])
def test_the_best_one_is_kept_across_restarts(tmp_path, better, best):
    name = "eval/any"
    values = {1: 0.5, 2: 0.3, 3: 0.9, 4: 0.6, 5: 0.7, 6: 0.9}
    cfg = CheckpointConfig(every_steps=1, every_minutes=None, keep_last=1, keep_best_by=name)
    for step, value in values.items():
        save(tmp_path, [step], cfg, {name: value}, better)
    save(tmp_path, [7, 8], cfg, better=better)  # without an evaluation
    assert steps_in(tmp_path) == [best, 8]
    assert retention.best_step(epath.Path(tmp_path), [best, 8], name, better=better) == best


def test_what_is_kept_is_for_process_0_to_say(tmp_path):
    """Another process may not see yet what process 0 has written of an evaluation."""
    cfg = CheckpointConfig(keep_last=1, keep_best_by="top1")
    infos = [types.SimpleNamespace(step=step) for step in (1, 2, 3)]
    said = [True, False, True]
    asked = []
    keep = retention.Keep(
        epath.Path(tmp_path), cfg, better="higher", agree=lambda own: asked.append(own) or said
    )
    assert keep.should_preserve(infos, context=None) == said
    assert asked == [[False, False, True]]


def test_evaluations_that_cannot_be_read_count_as_none(tmp_path):
    cfg = CheckpointConfig(every_steps=1, every_minutes=None, keep_last=2, keep_best_by="top1")
    save(tmp_path, [1, 2], cfg, {"top1": 0.5})
    directory = epath.Path(tmp_path)
    (tmp_path / "1" / "metadata" / "metadata").write_text("{")
    assert retention.read_metadata(directory / "1") == {}
    for spoilt in ("{", "3", '{"1": 5}', '{"1": {"top1": "high"}}', "\x00"):
        (tmp_path / "evaluations.json").write_text(spoilt)
        assert retention.best_step(directory, [1, 2], "top1", better="higher") is None
    save(tmp_path, [3, 4], cfg, {"top1": 0.4})
    assert retention.best_step(directory, [3, 4], "top1", better="higher") == 3


def test_a_measurement_that_is_not_a_number_is_never_the_best(tmp_path):
    cfg = CheckpointConfig(every_steps=1, every_minutes=None, keep_last=1, keep_best_by="eval/loss")
    for step, loss in {1: math.nan, 2: 0.5, 3: math.nan, 4: 0.7}.items():
        save(tmp_path, [step], cfg, {"eval/loss": loss, "eval/samples": 3.0}, "lower")
    directory = epath.Path(tmp_path)
    assert steps_in(tmp_path) == [2, 4]
    assert retention.best_step(directory, [2, 4], "eval/loss", better="lower") == 2
    json.loads((tmp_path / "evaluations.json").read_text(), parse_constant=pytest.fail)
    assert retention.goodness(math.nan, "lower") == -math.inf


def test_a_run_of_an_older_version_has_its_measurements_in_the_checkpoints(tmp_path):
    cfg = CheckpointConfig(every_steps=1, every_minutes=None)
    with Checkpoints(tmp_path, cfg) as checkpoints:
        for step, top1 in ((1, 0.5), (2, 0.4)):
            checkpoints.save(step, {"x": jnp.zeros(1)}, metadata={"metrics": {"top1": top1}})
        assert checkpoints.is_evaluated(1)
    assert retention.best_step(epath.Path(tmp_path), [1, 2], "top1", better="higher") == 1

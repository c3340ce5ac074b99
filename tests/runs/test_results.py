"""What a run leaves for its report, whole or damaged."""

import json

import numpy as np
import pytest

from clip_jax.runs.results import (
    ClassResult,
    Evaluation,
    load_evaluation,
    load_snapshots,
    read_metrics,
    save_evaluation,
    save_snapshot,
)

SIMILARITY_NN = np.random.default_rng(0).uniform(-1, 1, (5, 5)).astype(np.float32)


def test_snapshots_come_back_by_step(tmp_path):
    for step in (1000, 0, 20):
        save_snapshot(tmp_path, step, SIMILARITY_NN + step)
    snapshots = load_snapshots(tmp_path)
    assert list(snapshots) == [0, 20, 1000]
    np.testing.assert_array_equal(snapshots[20], SIMILARITY_NN + 20)


def test_damaged_snapshots_are_left_out(tmp_path):
    assert load_snapshots(tmp_path) == {}
    for step in range(4):
        save_snapshot(tmp_path, step, SIMILARITY_NN)
    whole = (tmp_path / "snapshots/000000000.npz").read_bytes()
    (tmp_path / "snapshots/000000000.npz").write_bytes(whole[:-40])
    (tmp_path / "snapshots/000000001.npz").write_bytes(b"")
    np.savez(tmp_path / "snapshots/000000002.npz", similarity=np.array([{}], object))
    (tmp_path / "snapshots/notes.txt").write_text("not a snapshot")
    assert list(load_snapshots(tmp_path)) == [3]


def test_the_same_step_twice_keeps_the_latter(tmp_path):
    save_snapshot(tmp_path, 3, SIMILARITY_NN)
    save_snapshot(tmp_path, 3, -SIMILARITY_NN)
    np.testing.assert_array_equal(load_snapshots(tmp_path)[3], -SIMILARITY_NN)
    assert [file.name for file in (tmp_path / "snapshots").iterdir()] == ["000000003.npz"]


def test_an_evaluation_comes_back(tmp_path):
    result = ClassResult(name="tench", group=None, images=3, accuracy=1 / 3)
    evaluation = Evaluation(metrics={"eval/loss": 0.25}, classes=(result,))
    save_evaluation(tmp_path, 7, evaluation)
    assert load_evaluation(tmp_path) == (7, evaluation)


@pytest.mark.parametrize("content", [None, "", '{"step": 1', "[]", '{"step": 1, "metrics": {}}'])
def test_an_evaluation_that_is_missing_or_torn_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "evaluation.json").write_text(content)
    assert load_evaluation(tmp_path) is None


def test_the_later_line_of_a_step_wins_and_a_torn_one_is_left_out(tmp_path):
    lines = [
        {"step": 10, "loss": 3.0, "lr": 0.1},
        {"step": 20, "loss": 2.0, "lr": 0.2},
        {"step": 20, "eval/loss": 2.5},
        {"step": 10, "loss": 2.9, "lr": 0.1},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"step": 30, "lo')
    assert read_metrics(tmp_path) == {
        10: {"loss": 2.9, "lr": 0.1},
        20: {"loss": 2.0, "lr": 0.2, "eval/loss": 2.5},
    }


def test_lines_that_are_no_metrics_are_left_out(tmp_path):
    assert read_metrics(tmp_path) == {}
    lines = ["", "3", "null", '{"loss": 1}', '{"step": "x"}', '{"step": Infinity}', "\udcff\x00"]
    lines += ['{"step": 1, "loss": NaN, "name": "text", "accuracy": 0.5}']
    content = "\n".join(lines).encode("utf-8", "surrogateescape")
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert read_metrics(tmp_path) == {1: {"accuracy": 0.5}}


def test_a_number_that_stopped_being_finite_does_not_keep_its_old_value(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 1, "loss": NaN}\n')
    assert read_metrics(tmp_path) == {1: {}}

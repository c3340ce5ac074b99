"""A run whose tower, terms, source, tokenizer, optimizer, evaluator, logger and hook are from outside."""

import csv
import json
import shutil

import pytest

from clip_jax.cli.main import main


def test_it_resumes_as_an_uninterrupted_run(run, train, settings, lose_since, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    lose_since(tmp_path / "run", 2)
    resumed = train(tmp_path / "run", *settings.everything)
    assert sorted(resumed) == [1, 2, 3, 4]
    for step, line in resumed.items():
        for name in ("loss", "loss/caption", "grad_norm", "update_norm", "mean_size"):
            assert line[name] == run.lines[step][name], (step, name)
    assert resumed[4]["eval/modality_gap"] == run.lines[4]["eval/modality_gap"]


def test_its_logger_and_its_hook_are_called_for_each_step(run):
    with open(run.path / "metrics.csv", newline="") as file:
        rows = {(int(step), name): float(value) for step, name, value in csv.reader(file)}
    for step in range(1, 5):
        assert rows[step, "mean_size"] == run.lines[step]["mean_size"] > 0
    assert rows[4, "eval/modality_gap"] == run.lines[4]["eval/modality_gap"]


def test_its_best_step_by_its_evaluator_is_evaluated_by_the_command_as_in_training(run, tmp_path):
    figures = tmp_path / "figures.json"
    assert main(["eval", str(run.path), "--step", "best", "--json-out", str(figures)]) == 0
    found = json.loads(figures.read_text())
    # Lower is better, says the record.
    best = min(run.lines, key=lambda step: run.lines[step]["eval/modality_gap"])
    assert found["eval/samples"] == 16 and not [name for name in found if "recall" in name]
    for name in ("eval/modality_gap", "eval/loss"):
        assert found[name] == pytest.approx(run.lines[best][name], rel=1e-4)

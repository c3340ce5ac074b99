"""An evaluator from outside the tree is measured in training and after it, and keeps the best step."""

import json

import pytest

from clip_jax.cli.main import main
from clip_jax.load import load
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.trained_variables import list_steps

NAME = "outside.evaluator:GAP"


@pytest.fixture
def settings(tmp_path, write_pairs) -> list[str]:
    """A run of 3 steps on 16 pairs, evaluated after each."""
    source = f"pairs:{write_pairs(tmp_path, 16)}"
    return [
        *("--model.name", "ViT-test", "--model.dtype", "float32", "--data.batch-size", "8"),
        *("--data.source", source, "--data.eval-source", source, "--evaluation.batch-size", "8"),
        *("--tokenizer.vocab-size", "290", "--optimizer.warmup-steps", "0", "--steps", "3"),
        *("--evaluation.every-steps", "1", "--checkpoint.every-steps", "1"),
        *("--checkpoint.keep-last", "1", "--logging.no-progress", "--logging.no-report"),
    ]


def test_an_evaluator_from_outside_is_measured_and_keeps_the_best_step(settings, tmp_path, capsys):
    run = tmp_path / "run"
    best_by = ["--checkpoint.keep-best-by", "eval/modality_gap"]
    named = ["--evaluation.metrics", "loss", NAME]
    assert main(["train", "--workdir", str(run), *settings, *named, *best_by]) == 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    gaps = {line["step"]: line["eval/modality_gap"] for line in lines if "eval/loss" in line}
    assert sorted(gaps) == [1, 2, 3]
    best = min(gaps, key=gaps.get)
    kept = list_steps(RunDirectory(run, main=False).checkpoints)
    assert best in kept and max(gaps, key=gaps.get) not in kept  # lower is better, says the record
    assert "modality_gap" in capsys.readouterr().out

    figures = tmp_path / "figures.json"
    assert main(["eval", str(run), "--step", "best", "--json-out", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert found["eval/modality_gap"] == pytest.approx(gaps[best], rel=1e-4)
    assert not [name for name in found if "recall" in name]
    assert load(run, step="best").model


def test_what_an_evaluator_from_outside_does_not_measure_is_refused(settings, tmp_path, capsys):
    for named, message in (
        (["--evaluation.metrics", "outside.evaluator:GAPS"], "the nearest is 'GAP'"),
        (["--evaluation.metrics", "outside.evaluator:measure"], "must be an Evaluator"),
        (["--checkpoint.keep-best-by", "eval/modality_gap"], "is no metric of evaluation.metrics"),
    ):
        assert main(["train", "--workdir", str(tmp_path / "run"), *settings, *named]) == 2
        assert message in capsys.readouterr().err

"""The verb `clip-jax eval` takes from a run what is not told, and from the command what is."""

import dataclasses
import json
import types

import pytest

from clip_jax.cli import evaluate
from clip_jax.config import DataConfig, EvaluationConfig, TrainConfig

CFG = TrainConfig(
    data=DataConfig(source=("pairs:train.csv",), eval_source="pairs:own.csv", threads=3),
    evaluation=EvaluationConfig(batch_size=24, retrieval=False),
)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """What the evaluators were made of, by a command on the run in the folder "run"."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(dataclasses.asdict(CFG)))
    (run / "model.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    seen = types.SimpleNamespace()

    def evaluators(first, others, model, mesh, tokenizer, *, cfg, data):
        seen.first, seen.others, seen.cfg, seen.data = first, others, cfg, data
        return lambda variables: types.SimpleNamespace(metrics={"eval/loss": 0.5})

    def load(path, step):
        seen.step = step
        return types.SimpleNamespace(model=None, variables=None, tokenizer="tokenizer")

    monkeypatch.setattr(evaluate, "Evaluators", evaluators)
    monkeypatch.setattr(evaluate, "load_to_host", load)
    monkeypatch.setattr(evaluate.sources, "open_eval_source", lambda data: data.eval_source)
    return seen


def test_a_run_is_measured_as_it_was_trained(asked, capsys):
    assert evaluate.evaluate(["run"]) == 0
    assert asked.first == "pairs:own.csv"
    assert (asked.cfg, asked.data, asked.step) == (CFG.evaluation, CFG.data, None)
    assert capsys.readouterr().out.split() == ["loss", "0.5"]


@pytest.mark.parametrize("place", [0, 2])
def test_what_is_told_goes_before_what_the_run_has(place, asked, tmp_path):
    args = ["--source", "pairs:other.csv"]
    args.insert(place, "run")
    args += ["--evaluation.retrieval", "--data.label-column", "kind", "--step", "best"]
    assert evaluate.evaluate([*args, "--json-out", "figures.json"]) == 0
    assert asked.first == "pairs:other.csv"
    assert asked.cfg == dataclasses.replace(CFG.evaluation, retrieval=True)
    assert (asked.data.threads, asked.data.label_column) == (3, "kind")
    assert asked.step == "best"
    assert json.loads((tmp_path / "figures.json").read_text()) == {"eval/loss": 0.5}


def test_released_weights_need_a_source(asked):
    with pytest.raises(ValueError, match="--source"):
        evaluate.evaluate(["weights.safetensors"])

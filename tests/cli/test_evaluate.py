"""`clip-jax eval` takes its settings from the run, where the command does not give them."""

import dataclasses
import json
import types

import pytest

from clip_jax.cli import evaluate
from clip_jax.config import DataConfig, EvaluationConfig, LossConfig, TrainConfig
from clip_jax.evaluation.evaluators.loss import default_loss
from clip_jax.models.clip import create_model

CFG = TrainConfig(
    loss=LossConfig(kind="sigmoid"),
    data=DataConfig(source=("pairs:train.csv",), eval_source="pairs:own.csv", threads=3),
    evaluation=EvaluationConfig(batch_size=24, metrics=("loss",)),
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

    def evaluators(first, others, model, mesh, tokenizer, *, cfg, data, loss):
        seen.first, seen.others, seen.cfg, seen.data = first, others, cfg, data
        seen.loss = loss
        return lambda variables: types.SimpleNamespace(metrics={"eval/loss": 0.5})

    def load(path, step):
        seen.step = step
        return types.SimpleNamespace(
            model=create_model("ViT-test"), variables=None, tokenizer="tokenizer"
        )

    monkeypatch.setattr(evaluate, "Evaluators", evaluators)
    monkeypatch.setattr(evaluate, "load_to_host", load)
    monkeypatch.setattr(evaluate.registry, "open_eval_source", lambda data: data.eval_source)
    return seen


def test_a_run_is_measured_as_it_was_trained(asked, capsys):
    assert evaluate.evaluate(["run"]) == 0
    assert asked.first == "pairs:own.csv"
    assert (asked.cfg, asked.data, asked.step) == (CFG.evaluation, CFG.data, None)
    assert asked.loss == CFG.loss
    assert capsys.readouterr().out.split() == ["loss", "0.5"]


@pytest.mark.parametrize("place", [0, 2])
def test_arguments_go_before_the_settings_of_the_run(place, asked, tmp_path):
    args = ["--source", "pairs:other.csv"]
    args.insert(place, "run")
    args += ["--evaluation.metrics", "zero_shot", "--data.label-column", "kind", "--step", "best"]
    assert evaluate.evaluate([*args, "--json-out", "new/figures.json"]) == 0
    assert asked.first == "pairs:other.csv"
    assert asked.cfg == dataclasses.replace(CFG.evaluation, metrics=("zero_shot",))
    assert (asked.data.threads, asked.data.label_column) == (3, "kind")
    assert asked.step == "best"
    assert json.loads((tmp_path / "new/figures.json").read_text()) == {"eval/loss": 0.5}


def test_released_weights_need_a_source(asked):
    with pytest.raises(ValueError, match="--source"):
        evaluate.evaluate(["weights.safetensors"])


def test_released_weights_are_measured_by_the_loss_of_their_kind(asked):
    assert evaluate.evaluate(["weights.safetensors", "--source", "pairs:other.csv"]) == 0
    assert asked.loss == LossConfig(kind="softmax")
    siglip = dataclasses.replace(create_model("ViT-test").config, init_logit_bias=-10.0)
    assert default_loss(siglip) == LossConfig(kind="sigmoid")


def test_the_subset_of_a_run_is_not_of_the_source_that_is_named(asked, tmp_path):
    trained = dataclasses.replace(CFG.data, subset=("train.txt",), eval_subset="own.txt")
    cfg = dataclasses.replace(CFG, data=trained)
    (tmp_path / "run" / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    assert evaluate.evaluate(["run"]) == 0
    assert asked.data.eval_subset == "own.txt"
    assert evaluate.evaluate(["run", "--source", "pairs:other.csv"]) == 0
    assert asked.data.eval_subset is None
    for setting in ("--data.subset", "--data.eval-subset"):
        assert evaluate.evaluate(["run", "--source", "pairs:other.csv", setting, "kept.txt"]) == 0
        assert asked.data.eval_subset == "kept.txt"
    with pytest.raises(ValueError, match=r"a\.txt, b\.txt are named"):
        two = ["--data.subset", "a.txt", "--data.eval-subset", "b.txt"]
        evaluate.evaluate(["run", "--source", "pairs:other.csv", *two])

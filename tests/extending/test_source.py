"""A source and a tokenizer from outside the tree are trained, evaluated and resumed like ours."""

import json
from pathlib import Path

import pytest

from clip_jax.cli.main import main
from clip_jax.config import DataConfig, TokenizerConfig
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tokenizers.registry import make_tokenizer

SETTINGS = [
    *("--model.name", "ViT-test", "--model.dtype", "float32", "--data.batch-size", "8"),
    *("--evaluation.batch-size", "8", "--logging.no-progress", "--logging.no-report"),
    *(
        "--data.source",
        "outside.source:Colors:40",
        "--data.eval-source",
        "outside.source:Colors:16",
    ),
    *("--tokenizer.kind", "outside.source:Bytes", "--optimizer.warmup-steps", "1"),
]


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


def losses(run: Path) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_source_and_a_tokenizer_from_outside_train_evaluate_and_resume(lose_since, tmp_path):
    every = ["--logging.every-steps", "1", "--checkpoint.every-steps", "2"]
    run = tmp_path / "run"
    command = ["train", *SETTINGS, *every, "--workdir", str(run), "--steps", "4"]
    assert main(command) == 0
    whole = losses(run)
    lose_since(run, 2)
    assert main(command) == 0
    assert losses(run) == whole and sorted(whole) == [1, 2, 3, 4]
    figures = tmp_path / "figures.json"
    arguments = ["--source", "outside.source:Colors:16", "--json-out", str(figures)]
    assert main(["eval", str(run), *arguments]) == 0
    assert json.loads(figures.read_text())["eval/samples"] == 16


def test_what_a_source_from_outside_leaves_out_is_filled_in():
    source = open_source("outside.source:Colors:3", "train", DataConfig())
    other = open_source("outside.source:Colors:4", "train", DataConfig())
    assert source.name == "outside.source:Colors:3" and source.classes is None
    assert source.fingerprint != other.fingerprint


def test_a_name_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"outside\.source has no attribute 'Color'; the nearest is 'Colors'"):  # fmt: skip
        open_source("outside.source:Color:3", "train", DataConfig())
    with pytest.raises(ValueError, match=r"tokenizer\.kind='sentencepeice' .*nearest is 'sentencepiece'"):  # fmt: skip
        make_tokenizer(TokenizerConfig(kind="sentencepeice"), "clip", 8, lambda: [])

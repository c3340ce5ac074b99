"""The package `outside` on the path, and one run by the real command in which all that can be is from it."""

import json
import shutil
import types
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

from clip_jax.cli.main import main
from clip_jax.data.tokenizers.clip_bpe import ClipTokenizer
from clip_jax.models.clip import create_model, init_variables
from clip_jax.weights.average import write_run

TERMS = (
    *("outside.term:UNIFORMITY=0.5", "outside.term:LENGTHS=2"),
    *("outside.head:CAPTION=0.3", "outside.head:DISTILL=0.2"),
)
DATA = (
    *(
        "--data.source",
        "outside.source:Colors:64",
        "--data.eval-source",
        "outside.source:Colors:16",
    ),
    *("--tokenizer.kind", "outside.source:Bytes"),
)
MODEL = ("--model.name", "outside.tower:CONFIG", "--model.dtype", "float32")
OPTIMIZER = (
    *("--optimizer.name", "outside.optimizer:signs", "--optimizer.options", "patience=3"),
    *("--optimizer.weight-decay", "0.1", "--optimizer.learning-rate", "1e-3"),
)
SHORT = (
    *("--data.batch-size", "16", "--evaluation.batch-size", "16", "--optimizer.warmup-steps", "0"),
    *("--optimizer.schedule", "constant", "--logging.every-steps", "1", "--logging.no-report"),
    "--logging.no-progress",
)
# On eight devices.
EVERYTHING = (
    *(*MODEL, *DATA, *OPTIMIZER, *SHORT, "--steps", "4", "--loss.terms", *TERMS),
    *("--mesh.fsdp", "2", "--data.accumulation", "2"),
    *("--evaluation.metrics", "loss", "outside.evaluator:GAP", "--evaluation.every-steps", "1"),
    *("--checkpoint.every-steps", "1", "--checkpoint.keep-last", "4"),
    *("--checkpoint.keep-best-by", "eval/modality_gap"),
    *("--logging.loggers", "jsonl", "outside.logger:Csv"),
    *("--logging.hooks", "outside.logger:mean_size"),
)


class Run(NamedTuple):
    path: Path
    lines: dict[int, dict]  # of metrics.jsonl, by step
    teacher: dict  # parameters of what TEACHER names


def lines_of(workdir: Path) -> dict[int, dict]:
    found: dict[int, dict] = {}
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        found.setdefault(line["step"], {}).update(line)
    return found


@pytest.fixture(scope="session", autouse=True)
def outside():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield


@pytest.fixture(scope="session")
def teacher(outside, tmp_path_factory):
    """The parameters of a model of random weights, whose path is in TEACHER."""
    model, path = create_model("outside.tower:CONFIG"), tmp_path_factory.mktemp("teacher") / "run"
    variables = jax.device_get(jax.jit(lambda key: init_variables(model, key))(jax.random.key(7)))
    tokenizer = ClipTokenizer(context_length=model.config.text.context_length)
    write_run(path, model.config, variables, tokenizer=tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER", str(path))
        yield variables["params"]


@pytest.fixture(scope="session")
def train():
    """`train(workdir, *settings)` runs the command: the lines of metrics.jsonl by step."""

    def run(workdir: Path, *settings: str) -> dict[int, dict]:
        assert main(["train", "--workdir", str(workdir), *settings]) == 0
        return lines_of(workdir)

    return run


@pytest.fixture(scope="session")
def run(train, teacher, tmp_path_factory) -> Run:
    """Four steps of which all that can be is from outside."""
    workdir = tmp_path_factory.mktemp("everything") / "run"
    return Run(workdir, train(workdir, *EVERYTHING), teacher)


@pytest.fixture(scope="session")
def settings() -> types.SimpleNamespace:
    """Those of `run`, and groups of them."""
    return types.SimpleNamespace(everything=EVERYTHING, model=MODEL, data=DATA, short=SHORT)


@pytest.fixture(scope="session")
def lose_since():
    """`lose_since(workdir, 2)`: the run as a machine lost before the save after step 2 leaves it."""

    def lose(workdir: Path, step: int):
        for saved in (workdir / "checkpoints").glob("[0-9]*"):
            if int(saved.name) > step:
                shutil.rmtree(saved)
        (workdir / "saved.json").write_text(json.dumps({"step": step}))

    return lose

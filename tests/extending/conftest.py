"""The package `outside` on the path, and a small run by the real command on eight devices."""

import json
import shutil
from pathlib import Path

import pytest

from clip_jax.cli.main import main

SETTINGS = [
    *("--model.name", "ViT-test", "--model.dtype", "float32", "--tokenizer.vocab-size", "300"),
    *("--data.batch-size", "16", "--data.accumulation", "2", "--mesh.fsdp", "2"),
    *("--evaluation.batch-size", "48", "--optimizer.warmup-steps", "0"),
    *("--optimizer.schedule", "constant", "--logging.every-steps", "1"),
    *("--checkpoint.every-steps", "2", "--logging.no-progress", "--logging.no-report"),
]


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.fixture(scope="session")
def lose_since():
    """`lose_since(workdir, 2)`: the run as a machine lost before the save after step 2 leaves it."""

    def lose(workdir: Path, step: int):
        for saved in (workdir / "checkpoints").glob("[0-9]*"):
            if int(saved.name) > step:
                shutil.rmtree(saved)
        (workdir / "saved.json").write_text(json.dumps({"step": step}))

    return lose


@pytest.fixture(scope="session")
def captions(tmp_path_factory, write_pairs) -> Path:
    """48 pairs of noise and a caption."""
    return write_pairs(tmp_path_factory.mktemp("pairs"), 48)


@pytest.fixture
def train(captions):
    """`train(workdir, steps, *settings)`: the lines of the run's metrics.jsonl by step."""

    def run(workdir: Path, steps: int, *settings: str) -> dict[int, dict]:
        where = ["--workdir", str(workdir), "--data.source", f"pairs:{captions}"]
        more = ["--data.eval-source", f"pairs:{captions}", "--checkpoint.allow-change", "steps"]
        assert main(["train", *SETTINGS, *where, *more, "--steps", str(steps), *settings]) == 0
        lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        found: dict[int, dict] = {}
        for line in lines:
            found.setdefault(line["step"], {}).update(line)
        return found

    return run

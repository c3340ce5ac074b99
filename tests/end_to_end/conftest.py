"""A small `shapes`, drawn once, and a run that other tests look at."""

import contextlib
import json
from pathlib import Path

import pytest

from clip_jax.cli.main import main

SMALL = [
    "--model.name",
    "ViT-test",
    "--model.dtype",
    "float32",
    "--data.batch-size",
    "32",
    "--evaluation.batch-size",
    "32",
    "--tokenizer.vocab-size",
    "300",
    "--optimizer.warmup-steps",
    "2",
    "--logging.every-steps",
    "2",
    "--logging.no-progress",
    "--checkpoint.every-steps",
    "4",
    "--checkpoint.keep-last",
    "3",
]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Where `shapes:tiny` is drawn; all processes of a test session share it."""
    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):  # a worker of pytest-xdist
        folder = folder.parent
    return folder / "data"


@pytest.fixture(scope="session")
def small(data_dir) -> list[str]:
    """Settings of a run that takes no time."""
    return ["--data.data-dir", str(data_dir), *SMALL]


@pytest.fixture(scope="session")
def train(small):
    """`train(workdir, *arguments)` runs `clip-jax train` on the small shapes."""

    def run(workdir: Path, *arguments: str, source: str = "shapes:tiny") -> int:
        where = ["--workdir", str(workdir), "--data.source", source]
        return main(["train", *small, *where, *arguments])

    return run


@pytest.fixture(scope="session")
def finished_run(train, tmp_path_factory) -> Path:
    """A run of 12 steps with two evaluations, in a directory that is named as people do."""
    folder = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(folder):
        assert train(Path("run"), "--steps", "12", "--evaluation.every-steps", "6") == 0
    return folder / "run"


@pytest.fixture
def metrics():
    """The lines of a run's metrics.jsonl."""

    def read(workdir: Path) -> list[dict]:
        return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    return read

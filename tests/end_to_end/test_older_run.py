"""A run that an older version saved resumes as that version would have gone on."""

import contextlib
import json
import tarfile
from pathlib import Path

import pytest

from clip_jax.cli.main import main
from clip_jax.load import load
from clip_jax.runs.directory import RunDirectory

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_5987b87" / "run.tar.xz"


@pytest.fixture
def old_run(tmp_path):
    """The fixture, unpacked and in a folder of another name."""
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return (tmp_path / "run").rename(tmp_path / "moved")


def losses(run: Path) -> dict[tuple[int, str], float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): line[name]
        for line in lines
        for name in ("loss", "eval/loss", "grad_norm", "eval/text_to_image_recall_at_1")
        if name in line
    }


def test_a_run_of_5987b87_resumes_with_the_losses_that_it_had_there(old_run, caplog):
    expected = losses(old_run)
    with contextlib.chdir(old_run.parent):
        assert main(["train", "--config", old_run.name]) == 0
    assert "another setting" not in caplog.text
    found = losses(old_run)
    assert found.keys() == expected.keys()
    assert {step for step, _ in found} == set(range(1, 11))
    assert found == pytest.approx(expected, rel=1e-4)


def test_its_settings_and_its_model_are_read_under_the_names_of_now(old_run):
    cfg = RunDirectory(old_run, main=False).load_config()
    assert cfg.loss.distributed == "replicated"
    assert set(cfg.evaluation.metrics) == {"loss", "retrieval"}
    assert cfg.workdir == str(old_run)
    model, _, tokenizer, _ = load(old_run)
    assert model.config.name == "ViT-test"
    assert tokenizer(["picture 3"]).shape == (1, model.config.text.context_length)

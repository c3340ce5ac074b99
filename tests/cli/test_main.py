"""The command: its subcommands, its help, and one line for each mistake that a person can make."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import main as cli
from clip_jax.cli.main import main
from clip_jax.config import ModelConfig, TrainConfig
from clip_jax.runs.directory import RunDirectory
from clip_jax.training.step_log import TooManySkipped

FREE_TO_CHANGE = {"run.lock", "goodput.json"}  # who holds the folder, and where its time goes
QUICK = ("--model.name", "ViT-test", "--tokenizer.kind", "clip", "--data.batch-size", "8")
QUICK += ("--evaluation.batch-size", "8", "--steps", "4", "--optimizer.warmup-steps", "2")
QUICK += ("--logging.no-progress", "--logging.loggers", "jsonl", "--logging.no-report")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Sixteen pictures with captions, a folder of an earlier run, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_cache_compiled_programs", lambda: None)
    rows = ["file,caption"]
    for number in range(16):
        pixels_HWC = np.full((20, 24, 3), 10 * number, np.uint8)
        Image.fromarray(pixels_HWC).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,picture {number}")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "empty.csv").write_text("file,caption\n")
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "fails.py").write_text("def get_config():\n    return {}['steps']\n")
    with RunDirectory("run") as run:
        run.save_config(TrainConfig(workdir="run", seed=123), ModelConfig())
        run.append_metrics({"step": 4, "loss": 1.0})
        run.write_json("data.json", {"fingerprint": "0" * 16})
        (run.checkpoints / "4").mkdir(parents=True)
        (run.checkpoints / "4" / "MANIFEST.json").write_text("{}")
    return tmp_path


def contents(folder) -> dict:
    files = (path for path in (folder / "run").rglob("*") if path.is_file())
    return {path.name: path.read_bytes() for path in files if path.name not in FREE_TO_CHANGE}


def train(*arguments: str) -> list[str]:
    """The arguments of a training on the pictures, in the run's folder."""
    return ["train", "--workdir", "run", "--data.source", "pairs:captions.csv", *QUICK, *arguments]


SOURCE = "--data.source"
MISTAKES = {
    "a missing file": (train(SOURCE, "pairs:nowhere.csv"), "nowhere.csv"),
    "an empty file": (train(SOURCE, "pairs:nothing.csv"), "nothing.csv"),
    "a file without rows": (train(SOURCE, "pairs:empty.csv"), "empty.csv"),
    "no such column": (train("--data.caption-column", "says"), "'says'"),
    "an unknown format": (train(SOURCE, "pear:x.csv"), "there is no format 'pear'"),
    "an unknown dataset": (train(SOURCE, "tfds:no_such_set"), "no_such_set"),
    "an unknown model": (train("--model.name", "ViT-B-31"), "ViT-B-32"),
    "a batch over devices": (train("--data.batch-size", "12"), "data.batch_size=12"),
    "micro-batches": (train("--data.accumulation", "2"), "2 micro-batches"),
    "a mesh": (train("--mesh.fsdp", "3"), "mesh.fsdp=3"),
    "a mesh of other devices": (train("--mesh.data", "3"), "8 devices"),
    "a warm-up": (train("--optimizer.warmup-steps", "9"), "optimizer.warmup_steps=9"),
    "a frozen random tower": (train("--model.freeze", "image"), "model.init_from"),
    "no weights": (train("--model.init-from", "nowhere.pt"), "nowhere.pt"),
    "no steps": (train("--steps", "0"), "steps=0"),
    "no workdir": (train("--workdir", ""), "workdir=''"),
    "a number out of range": (train("--optimizer.b2", "1.5"), "optimizer.b2=1.5 must be"),
    "an old setting": (train("--loss.movement", "ring"), "--loss.movement is named --loss.distr"),
    "an old value": (train("--loss.distributed=dense"), "is named --loss.distributed replicated"),
    "an old switch": (train("--evaluation.no-zero-shot"), "named --evaluation.metrics now"),
    "an evaluator": (train("--evaluation.metrics", "zero-shot"), "nearest is 'zero_shot'"),
    "a config that fails": (["train", "--config", "fails.py"], "fails.py, line 2: KeyError"),
    "no run to report": (["report", ""], "empty name"),
    "another run's folder": (train(), "seed: 123 -> 0"),
    "a file as folder": (train("--workdir", "captions.csv"), "workdir=captions.csv"),
    "no config file": (["train", "--config", "nowhere.py"], "nowhere.py"),
    "no config file named": (["train", "--config"], "--config needs a file"),
    "nothing to evaluate": (["eval", "nowhere"], "nowhere"),
    "nothing to evaluate on": (["eval", "run", SOURCE[:2] + "source", "pairs:no.csv"], "step 4"),
    "nothing to report": (["report", "nowhere"], "nowhere is no run directory"),
    "nothing to convert": (["convert", "nowhere", "out"], "nowhere"),
    "nothing to export": (["export", "nowhere", "out"], "nowhere"),
    "no such data": (["data", "stats", "pairs:nowhere.csv"], "nowhere.csv"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_it_and_changes_nothing(name, folder, capsys):
    arguments, named = MISTAKES[name]
    before = contents(folder)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("clip-jax: ") and line.endswith("(--traceback shows where)")
    assert named in line
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (train("--optimizer.learning-rat", "1e-3"), "--optimizer.learning-rate"),
        (train("--model.freeze", "both"), "none"),
        (["eval", "run", "--sorce", "x"], "--source"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest_one(arguments, nearest, folder, capsys):
    before = contents(folder)
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert nearest in error and "Traceback" not in error
    assert contents(folder) == before


def test_a_traceback_is_shown_to_whom_asks_for_it(folder, capsys):
    assert main(["report", "nowhere", "--traceback"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and "nowhere is no run directory" in error


def test_a_mistake_in_our_code_keeps_its_traceback(monkeypatch):
    def broken(args):
        raise KeyError("ours")

    monkeypatch.setitem(cli.COMMANDS, "models", broken)
    with pytest.raises(KeyError):
        main(["models"])


def test_a_training_that_broke_down_has_another_code_than_a_mistake(monkeypatch, capsys):
    def diverged(args):
        raise TooManySkipped("20 steps in a row")

    monkeypatch.setitem(cli.COMMANDS, "train", diverged)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.startswith("clip-jax: 20 steps in a row")


def test_secrets_are_not_repeated_in_an_error(folder, capsys):
    main(train(SOURCE, "pairs:https://me:hunter2@host/x.csv"))
    assert "hunter2" not in capsys.readouterr().err


def test_help_names_every_command_and_a_mistyped_one_is_answered_with_it(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {command} " in listed for command in cli.COMMANDS)
    assert main([]) == 2
    capsys.readouterr()
    assert main(["trian"]) == 2
    (first, *_) = capsys.readouterr().err.splitlines()
    assert first.endswith('no command "trian"; the nearest is train')


def test_models_are_listed_with_their_sizes(capsys):
    assert main(["models", "vit-b-32"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.split()[:5] == ["ViT-B-32", "224", "512", "151.3", "M"] for row in rows)
    assert not any("ViT-L-14" in row for row in rows)


def test_flags_override_the_config_file(folder, monkeypatch):
    taken = []
    monkeypatch.setattr(cli, "train", lambda cfg, began: taken.append(cfg) or 0)
    optimizer = "OptimizerConfig(warmup_steps=1)"
    body = f"TrainConfig(steps=7, seed=5, loss=LossConfig(tile=3), optimizer={optimizer})"
    (folder / "mine.py").write_text(
        f"from clip_jax.config import *\ndef get_config():\n    return {body}\n"
    )
    assert main(["train", "--config", "mine.py", "--steps", "9", "--loss.tile", "None"]) == 0
    assert main(["train", "--steps=9", "--config=mine.py"]) == 0
    assert [(cfg.steps, cfg.seed, cfg.loss.tile) for cfg in taken] == [(9, 5, None), (9, 5, 3)]


def test_an_earlier_runs_settings_can_be_started_from(folder, monkeypatch):
    taken = []
    monkeypatch.setattr(cli, "train", lambda cfg, began: taken.append(cfg) or 0)
    assert main(["train", "--config", "run", "--workdir", "other"]) == 0
    assert (taken[0].seed, taken[0].workdir) == (123, "other")
    (folder / "run").rename(folder / "moved")
    assert main(["train", "--config", "moved"]) == 0
    assert (taken[1].seed, taken[1].workdir) == (123, "moved")


def test_a_report_shows_where_the_time_went(folder, capsys):
    account = {"seconds": {"stepping": 90.0, "saving": 10.0}}
    (folder / "run" / "goodput.json").write_text(json.dumps(account))
    assert main(["report", "run"]) == 0
    page = folder / capsys.readouterr().out.strip()
    assert "90.0 %" in page.read_text()


def test_the_arguments_are_those_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["clip-jax", "models", "ViT-test"])
    assert main() == 0
    assert "ViT-test" in capsys.readouterr().out

"""The command `clip-jax bench`: DataComp's 38 tasks, cut off three times, in one table."""

import csv
import dataclasses

import pytest

from clip_jax.cli.bench import named_models
from clip_jax.cli.main import main
from clip_jax.evaluation.bench import cache
from clip_jax.load import load_to_host
from clip_jax.models.clip import CLIP
from clip_jax.weights.average import average_models, write_run
from clip_jax.weights.export import export


@pytest.fixture
def weights(tmp_path, loaded):
    """A model as a person has it: a directory of open_clip's."""
    folder = tmp_path / "weights"
    config, variables = loaded.model.config, loaded.variables
    export(folder, config, variables, to="open_clip", tokenizer=loaded.tokenizer)
    return str(folder)


def command(weights, root, out, *more: str) -> int:
    return main([
        "bench", f"tiny={weights}", "--root", str(root), "--out", str(out), "--batch-size", "64",
        "--save-every", "64", "--data.data-dir", str(out / "data"), "--data.threads", "2", *more,
    ])  # fmt: skip


def table(out) -> list[dict]:
    return list(csv.DictReader((out / "results.csv").read_text().splitlines()))


def test_datacomps_38_tasks_cut_off_three_times_make_the_same_table(
    weights, datacomp_root, tmp_path, monkeypatch, capsys
):
    write, written = cache.atomic_write, []

    def dies_after(count):
        def write_or_die(path, content):
            if len(written) == count:
                raise KeyboardInterrupt
            written.append(path)
            write(path, content)

        return write_or_die

    for count in (3, 40, 80):  # within a task, and between two
        monkeypatch.setattr(cache, "atomic_write", dies_after(count))
        with pytest.raises(KeyboardInterrupt):
            command(weights, datacomp_root, tmp_path / "cut")
    monkeypatch.setattr(cache, "atomic_write", dies_after(10_000))
    assert command(weights, datacomp_root, tmp_path / "cut") == 0
    assert len(written) == len(set(written))  # nothing was made twice
    capsys.readouterr()
    assert command(weights, datacomp_root, tmp_path / "whole") == 0
    assert table(tmp_path / "cut") == table(tmp_path / "whole")
    assert len({row["dataset"] for row in table(tmp_path / "whole")}) == 38
    shown = capsys.readouterr().out
    averages = [line for line in shown.splitlines() if " mean " in line]
    assert len(averages) == 5 and not any("/" in line for line in averages)  # of all their tasks


def test_the_exit_code_says_that_a_task_failed(weights, datacomp_root, tmp_path, capsys):
    suite = tmp_path / "mine.toml"
    suite.write_text(
        f'tasks = [{{ name = "mnist" }}, {{ name = "x", source = "folder:{tmp_path}/nowhere" }}]\n'
    )
    assert command(weights, datacomp_root, tmp_path / "out", "--suite", str(suite)) == 1
    shown = capsys.readouterr().out
    assert f"tiny x: folder:{tmp_path}/nowhere" in shown or f"{tmp_path}/nowhere" in shown
    assert [row["dataset"] for row in table(tmp_path / "out") if row["main"] == "1"] == ["mnist"]


def test_list_says_where_the_data_are_and_measures_nothing(datacomp_root, tmp_path, capsys):
    assert main(["bench", "--suite", "vtab", "--root", str(datacomp_root), "--list",
                 "--data.data-dir", str(tmp_path)]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and all(" there " in line for line in lines)


def test_settings_without_effect_are_refused(capsys):
    assert main(["bench", "x", "--suite", "imagenet", "--data.subset", "half.npy"]) == 2
    assert "--data.subset has no effect on a suite" in capsys.readouterr().err
    assert main(["bench", "x", "--suite", "imagenet", "--save-every", "0"]) == 2
    assert "--save-every 0 must be a whole number" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_refused_before_any_is_measured(weights, tmp_path, capsys):
    models = [f"tiny={weights}", f"other={tmp_path}/nowhere"]
    assert main(["bench", *models, "--suite", "imagenet", "--out", str(tmp_path / "out")]) == 2
    assert f"there is no file or directory {tmp_path}/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_have_names_of_their_own():
    assert named_models(("runs/a", "b=gs://x/y")) == {"runs/a": "runs/a", "b": "gs://x/y"}
    assert named_models(("runs/lr=1/x",)) == {"runs/lr=1/x": "runs/lr=1/x"}
    with pytest.raises(ValueError, match="two models are named a: write NAME=PATH"):
        named_models(("a=x", "a=y"))
    with pytest.raises(ValueError, match="name one model or more"):
        named_models(())


def test_average_draws_its_curve_and_keeps_a_greedy_soup(
    datacomp_root, loaded, other_loaded, tmp_path, capsys
):
    paths = []
    for number, each in enumerate((loaded, other_loaded)):
        paths.append(str(tmp_path / f"model{number}"))
        write_run(paths[-1], each.model.config, each.variables, tokenizer=each.tokenizer)
    suite = tmp_path / "mine.toml"
    suite.write_text('tasks = [{ name = "mnist" }, { name = "cars" }]\n[averages]\nBoth = "all"\n')
    more = ["--suite", str(suite), "--root", str(datacomp_root), "--batch-size", "64",
            "--data.data-dir", str(tmp_path / "data")]  # fmt: skip
    assert main(["average", *paths, "--curve", "3", "--out", str(tmp_path / "curve"), *more]) == 0
    models = {row["model"] for row in table(tmp_path / "curve")}
    assert models == {"0", "0.5", "1"}
    assert main(["average", *paths, "--greedy", "--out", str(tmp_path / "soup"), *more]) == 0
    assert "kept: " in capsys.readouterr().out
    assert load_to_host(str(tmp_path / "soup")).tokenizer is not None


@pytest.mark.parametrize("change, message", [
    ("activation", r"model 2 has text\.activation=quick_gelu, and the first gelu"),
    ("pixels", r"model 2 has vision\.activation=quick_gelu, and the first gelu"),
    ("mean", r"model 2 has preprocess\.mean="),
    ("tokenizer", "model 2 has another tokenizer"),
])  # fmt: skip
def test_models_that_read_or_compute_in_other_ways_are_not_averaged(loaded, change, message):
    config, tokenizer = loaded.model.config, loaded.tokenizer
    if change == "activation":
        text = dataclasses.replace(config.text, activation="quick_gelu")
        config = dataclasses.replace(config, text=text)
    elif change == "pixels":
        vision = dataclasses.replace(config.vision, activation="quick_gelu")
        config = dataclasses.replace(config, vision=vision)
    elif change == "mean":
        preprocess = dataclasses.replace(config.preprocess, mean=(0.5, 0.5, 0.5))
        config = dataclasses.replace(config, preprocess=preprocess)
    else:
        tokenizer = lambda texts: loaded.tokenizer([text[::-1] for text in texts])  # noqa: E731
    other = loaded._replace(model=CLIP(config), tokenizer=tokenizer)
    half = (0.5, 0.5)
    assert average_models([lambda: loaded, lambda: loaded], half).model is loaded.model
    with pytest.raises(ValueError, match=message):
        average_models([lambda: loaded, lambda: other], half)

"""The main job from one end to the other, through the command that a person types."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from clip_jax.cli.main import main


def test_a_run_leaves_everything_that_a_person_looks_for(finished_run, metrics):
    names = {path.name for path in finished_run.iterdir()}
    assert {"config.json", "model.json", "tokenizer", "checkpoints", "report.html"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = metrics(finished_run)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    evaluated = [line for line in lines if "eval/zero_shot_top1" in line]
    assert [line["step"] for line in evaluated] == [6, 12]
    assert "eval/zero_shot_held_out_top1" in evaluated[-1]
    assert evaluated[-1]["eval/text_to_image_recall_at_1_chance"] == pytest.approx(1 / 240)


def test_the_report_is_one_page_that_needs_nothing_else(finished_run):
    page = (finished_run / "report.html").read_text()
    assert page.count("data:image") > 5
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    snapshots = sorted(path.stem for path in (finished_run / "snapshots").glob("*.npz"))
    assert [int(step) for step in snapshots] == [0, 6, 12]


def test_a_finished_run_is_left_as_it_is(finished_run, train, metrics, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    before = metrics(workdir)
    assert train(workdir, "--steps", "12", "--evaluation.every-steps", "6") == 0
    assert metrics(workdir) == before


def test_training_goes_on_where_it_stopped_to_the_same_numbers(
    finished_run, train, metrics, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for later in ("12", "8"):  # as if it had been killed before step 8 was saved
        shutil.rmtree(workdir / "checkpoints" / later)
    assert train(workdir, "--steps", "12", "--evaluation.every-steps", "6") == 0
    same = ("step", "loss", "grad_norm", "cosine_pairs", "eval/zero_shot_top1", "eval/loss")

    def figures(run):
        return [{k: line[k] for k in same if k in line} for line in metrics(run)]

    assert figures(workdir) == figures(finished_run)


def test_a_mesh_of_one_axis_or_the_other_gives_the_same_curve(
    train, metrics, finished_run, tmp_path
):
    """8x1, of `finished_run`, and 1x8. `test_faults.py` has one of both axes."""
    mesh = ["--mesh.data", "1", "--mesh.fsdp", "8"]
    assert train(tmp_path / "run", "--steps", "12", "--evaluation.every-steps", "6", *mesh) == 0
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    expected = [line["loss"] for line in metrics(finished_run) if "loss" in line]
    np.testing.assert_allclose(losses, expected, rtol=2e-4)


def test_a_run_starts_from_another_runs_weights_on_another_mesh(
    train, finished_run, metrics, tmp_path
):
    mesh = ["--mesh.fsdp", "2", "--optimizer.learning-rate", "1e-9"]
    start = ["--model.init-from", str(finished_run), "--steps", "2"]
    assert train(tmp_path / "run", *start, *mesh) == 0
    found, expected = metrics(tmp_path / "run")[-1], metrics(finished_run)[-1]
    assert found["eval/loss"] == pytest.approx(expected["eval/loss"], rel=1e-4)


def test_eval_repeats_what_training_found_also_of_what_was_converted(
    finished_run, metrics, data_dir, tmp_path, capsys, monkeypatch
):
    figures = tmp_path / "run.json", tmp_path / "converted.json"
    assert main(["eval", str(finished_run), "--json-out", str(figures[0])]) == 0
    assert "zero_shot_top1" in capsys.readouterr().out
    monkeypatch.chdir(data_dir.parent)  # where `shapes` looks for its data
    assert main(["convert", str(finished_run), str(tmp_path / "out"), "--to", "huggingface"]) == 0
    arguments = ["--source", "shapes:tiny", "--json-out", str(figures[1])]
    assert main(["eval", str(tmp_path / "out"), *arguments]) == 0, capsys.readouterr().err
    found, converted = (json.loads(file.read_text()) for file in figures)
    last = metrics(finished_run)[-1]
    assert found["eval/zero_shot_top1"] == pytest.approx(last["eval/zero_shot_top1"], abs=1e-6)
    found.pop("eval/loss"), converted.pop("eval/loss")  # of batches of another size
    assert converted == pytest.approx(found, abs=1e-3)


def test_load_gives_a_model_that_embeds_images_and_texts(finished_run):
    model, variables, tokenizer, preprocess = clip_jax.load(finished_run)
    pixels_HWC = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    picture = finished_run / "picture.png"
    Image.fromarray(pixels_HWC).save(picture)
    z_image = model.apply(variables, preprocess(picture)[None], method="encode_image")
    z_text = model.apply(variables, tokenizer(["a red circle", "a cube"]), method="encode_text")
    assert clip_jax.similarity(z_image, z_text).shape == (1, 2)
    np.testing.assert_allclose(jax.numpy.linalg.norm(z_text, axis=1), 1, rtol=1e-5)


@pytest.fixture
def folder(tmp_path):
    """Real image files of three formats, one of them broken, and a list of captions."""
    rng = np.random.default_rng(0)
    rows = ["file,says"]
    for number in range(64):
        kind = ("jpg", "png", "webp")[number % 3]
        size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
        pixels_HWC = rng.integers(0, 255, size, np.uint8)
        Image.fromarray(pixels_HWC).save(tmp_path / f"{number}.{kind}")
        rows.append(f'{number}.{kind},"picture number {number}, of noise"')
    (tmp_path / "3.jpg").write_bytes((tmp_path / "3.jpg").read_bytes()[:200])
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


COLUMNS = ("--data.image-column", "file", "--data.caption-column", "says")


def test_own_pairs_are_one_setting_away(folder, train, metrics):
    arguments = ["--steps", "6", "--data.max-bad-share", "0.1", *COLUMNS]
    workdir = folder / "run"
    assert train(workdir, *arguments, source=f"pairs:{folder / 'captions.csv'}") == 0
    assert metrics(workdir)[-1]["step"] == 6
    counts = json.loads((workdir / "bad_samples.json").read_text())
    assert counts["seen"] == 6 * 32
    assert counts["bad"] >= 2
    assert counts["first"][0]["key"].endswith("3.jpg")


def test_too_many_bad_images_stop_the_run_with_their_names(folder, train, capsys):
    for number in range(0, 30, 3):
        (folder / f"{number}.jpg").write_bytes(b"<html>not found</html>")
    source = f"pairs:{folder / 'captions.csv'}"
    assert train(folder / "run", "--steps", "20", *COLUMNS, source=source) == 2
    error = capsys.readouterr().err
    assert "data.max_bad_share=0.01" in error
    assert ".jpg" in error

"""`clip-jax data filter` and `clip-jax data map` on embeddings, made before or by the command."""

import dataclasses
import json

import numpy as np
import pytest

from clip_jax.cli import curation
from clip_jax.cli import main as cli
from clip_jax.cli.collection import data_of
from clip_jax.cli.main import main
from clip_jax.config import DataConfig, TrainConfig

SOURCE, TEST = "planted_source.of:Pictures:90", "planted_source.of:Pictures:40"


@pytest.fixture
def embedded(vectors, near, pictures, write_embeddings, tmp_path, monkeypatch):
    """90 pictures: 20 to 29 are copies of 0 to 9, 30 to 39 of the test set, 40 to 49 have other texts."""
    monkeypatch.setattr(cli, "_cache_compiled_programs", lambda: None)
    rng = np.random.default_rng(0)
    image, test = vectors(90, 64), vectors(40, 64, seed=1)
    image[20:30], image[30:40] = near(image[:10], 0.97, rng), near(test[:10], 0.97, rng)
    text = near(image, 0.5, rng)
    text[40:50] = near(image[40:50], 0.1, rng)

    def write(folder, source: str):
        z = {"image": image, "text": text} if source == SOURCE else {"image": test}
        write_embeddings(folder, pictures(len(z["image"])), np.arange(len(z["image"])), **z)
        return str(folder)

    return write


def counts(folder) -> dict:
    found = json.loads((folder / "filter.json").read_text())
    return {rule["rule"]: rule["dropped"] for rule in found["rules"]}


def test_all_rules_by_the_command(embedded, tmp_path, capsys):
    (tmp_path / "concepts.txt").write_text("dog\n")
    arguments = ["--embeddings", embedded(tmp_path / "e", SOURCE), "--score-above", "0.3"]
    arguments += ["--against", embedded(tmp_path / "t", TEST), "--against-above", "0.95"]
    arguments += ["--duplicates-above", "0.95", "--concepts", str(tmp_path / "concepts.txt")]
    assert main(["data", "filter", SOURCE, str(tmp_path / "out"), *arguments]) == 0
    found = counts(tmp_path / "out")
    rest = [n for n in range(90) if not 20 <= n < 50]
    without_dog = sum(n % 3 == 0 for n in rest)
    assert found == {"score": 10, "evaluation": 10, "duplicates": 10, "concepts": without_dog}
    assert f"{60 - without_dog} of 90 samples are kept" in capsys.readouterr().out
    kept = str(tmp_path / "out" / "kept.safetensors")
    assert main(["data", "stats", SOURCE, "--data.subset", kept]) == 0
    assert f": {60 - without_dog} samples" in capsys.readouterr().out
    assert main(["data", "filter", SOURCE, str(tmp_path / "out"), *arguments]) == 2
    assert "holds the files of a filter" in capsys.readouterr().err


def test_clusters_say_their_recall(embedded, tmp_path, capsys):
    arguments = ["--embeddings", embedded(tmp_path / "e", SOURCE), "--duplicates-above", "0.95"]
    arguments += ["--duplicates-clusters", "4", "--duplicates-probes", "4"]
    assert main(["data", "filter", SOURCE, str(tmp_path / "out"), *arguments]) == 0
    assert "recall 1.0000 (20 of 20 near pairs of a sample)" in capsys.readouterr().out
    assert "recall 1.0000" in (tmp_path / "out" / "report.html").read_text()


def test_sources_are_embedded_where_a_model_is_named(embedded, tmp_path, monkeypatch):
    seen = []

    def embed_into(settings):
        seen.append((settings.source, settings.what, settings.split, settings.data.subset))
        assert settings.model == "run"
        embedded(tmp_path / settings.out, settings.source)

    monkeypatch.setattr(curation, "embed_into", embed_into)
    out = tmp_path / "out"
    arguments = ["--model", "run", "--against", TEST, "--against-above", "0.95"]
    assert main(["data", "filter", SOURCE, str(out), *arguments]) == 0
    assert seen == [(SOURCE, "both", "train", ()), (TEST, "images", "test", ())]
    assert counts(out) == {"evaluation": 10}
    page = str(tmp_path / "map.html")
    assert main(["data", "map", "images:nowhere", page, "--model", "run"]) == 2
    assert seen[2] == ("images:nowhere", "images", "train", ())  # which have no captions


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--score-above", "0.1"], "name the embeddings of the source with --embeddings"),
        ([], "no rule is set"),
        (["--against", TEST, "--embeddings", "e"], "is no folder of embeddings"),
        (["--score-above", "0.1", "--embeddings", "nowhere"], "no folder of embeddings nowhere"),
        (
            ["--duplicates-above", "0", "--embeddings", "e"],
            "clip-jax: duplicates_above=0.0 must be",
        ),
    ],
)
def test_what_is_missing_is_named(embedded, arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embedded(tmp_path / "e", SOURCE)
    assert main(["data", "filter", SOURCE, "out", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_map_by_the_command(embedded, tmp_path):
    arguments = ["--embeddings", embedded(tmp_path / "e", SOURCE), "--points", "30"]
    assert main(["data", "map", SOURCE, str(tmp_path / "map.html"), *arguments]) == 0
    assert "30 of 90 image embeddings by PCA" in (tmp_path / "map.html").read_text()


def test_the_subset_of_a_run_is_not_that_of_what_is_embedded(tmp_path):
    data = DataConfig(
        source=("pairs:train.csv",), subset=("kept.txt",), eval_subset="own.txt", threads=3
    )
    cfg = TrainConfig(data=data)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
    (tmp_path / "model.json").write_text("{}")
    found = data_of(str(tmp_path))
    assert (found.subset, found.eval_subset, found.threads) == ((), None, 3)

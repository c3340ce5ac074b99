"""The verbs under `clip-jax data`."""

import os
import sys
import tarfile
import types

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli import main as cli
from clip_jax.cli.main import main
from clip_jax.config import DataConfig
from clip_jax.data.sources.registry import open_source


@pytest.fixture
def pairs(tmp_path, monkeypatch) -> str:
    """Twelve pictures with captions, two of them alike and one that is broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_cache_compiled_programs", lambda: None)
    rows = ["file,caption"]
    for number in range(12):
        pixels_HWC = np.full((20, 24, 3), 10 * number, np.uint8)
        Image.fromarray(pixels_HWC).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,picture {min(number, 10)}")
    (tmp_path / "7.png").write_bytes(b"broken")
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    return f"pairs:{tmp_path / 'captions.csv'}"


def run(capsys, *arguments: str) -> str:
    assert main(["data", *arguments]) == 0
    return capsys.readouterr().out


def test_index_says_how_many_samples_there_are(pairs, capsys):
    assert "12 samples" in run(capsys, "index", pairs)


def test_index_mends_a_stale_index_as_the_error_says(pairs, capsys, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("0.png", "captions.csv", "1.png"):
            tar.add(tmp_path / name, name.replace("captions.csv", "0.txt"))
    source = f"tar:{tmp_path}/0.tar"
    assert "2 samples in 1 shards" in run(capsys, "index", source)
    os.utime(tmp_path / "0.tar", (1, 1))
    assert main(["data", "stats", source]) == 2
    assert "`clip-jax data index SOURCE`" in capsys.readouterr().err
    assert "2 samples in 1 shards" in run(capsys, "index", source)
    assert "2 samples" in run(capsys, "stats", source)


def test_stats_count_what_is_broken_and_what_is_twice_there(pairs, capsys):
    shown = run(capsys, "stats", pairs)
    assert "7.png: unknown-format" in shown
    assert "duplicate captions   1 " in shown
    fewer = run(capsys, "stats", pairs, "--max-samples", "3")
    assert "12 samples, 3 looked at" in fewer


def test_preview_is_a_page_with_captions(pairs, capsys, tmp_path):
    assert (
        run(capsys, "preview", pairs, "--out", "page.html", "--count", "12").strip() == "page.html"
    )
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image") == 11  # and one that is broken
    assert "picture 0" in page


def test_bench_reads_real_batches(pairs, capsys):
    sizes = ("--image-size", "16", "--seconds", "0.05", "--data.batch-size", "4")
    assert "batches, by the clock" in run(
        capsys, "bench", pairs, *sizes, "--data.max-bad-share", "0.5"
    )


def test_converted_records_hold_the_same_samples(pairs, capsys):
    run(capsys, "convert", pairs, "records", "--data.max-bad-share", "0.5")
    assert "12 samples" in run(capsys, "index", "records:records")


@pytest.mark.parametrize("verb", ["index", "stats", "preview", "bench", "convert"])
def test_a_source_that_is_not_there_is_named_in_one_line(verb, pairs, capsys):
    out = ["out"] if verb == "convert" else []
    assert main(["data", verb, "pairs:nowhere.csv", *out]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "nowhere.csv" in line


def test_an_unknown_verb_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["data", "indx"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "index" in error and "Traceback" not in error


def test_a_subset_file_is_made_of_keys_and_read_by_the_other_commands(pairs, capsys, tmp_path):
    keys = [sample.key for sample in (open_source(pairs, "train", DataConfig())[n] for n in (2, 9))]
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    out = str(tmp_path / "kept.safetensors")
    assert "2 of 12 samples" in run(capsys, "subset", pairs, "keys.txt", out)
    for subset in (out, "keys.txt"):
        assert ": 2 samples" in run(capsys, "stats", pairs, "--data.subset", subset)
    (tmp_path / "keys.txt").write_text("no such key")
    assert main(["data", "stats", pairs, "--data.subset", "keys.txt"]) == 2
    assert "1 of 1 keys are not in" in capsys.readouterr().err


def test_beams_own_options_reach_it_and_are_refused_without_it(pairs, capsys, monkeypatch):
    seen = []
    stand_in = types.SimpleNamespace(
        convert_on_beam=lambda source, cfg, out, *, shuffle, options: seen.extend(options)
    )
    monkeypatch.setitem(sys.modules, "clip_jax.data.tools.convert_beam", stand_in)
    options = ["--beam-options=--runner=FlinkRunner", "--beam-options=--parallelism=4"]
    run(capsys, "convert", pairs, "out", *options, "--beam")
    assert seen == ["--runner=FlinkRunner", "--parallelism=4"]
    assert main(["data", "convert", pairs, "out", *options]) == 2
    assert "--beam-options --runner=FlinkRunner" in capsys.readouterr().err

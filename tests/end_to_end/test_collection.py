"""The real commands on a collection: embed, killed and resumed, index, search, classify."""

import csv
import hashlib
import json
import signal
import sys
from pathlib import Path

import pytest

from clip_jax.cli.main import main

sys.path.insert(0, str(Path(__file__).parent))
from command import Command

EMBED = ["--split", "test", "--batch-size", "40", "--part-size", "40", "--no-progress"]


@pytest.fixture(scope="module")
def embedded(finished_run, data_dir, tmp_path_factory):
    """The test scenes of the embedded data set, 240 of them, in six parts."""
    out = tmp_path_factory.mktemp("embedded") / "out"
    where = [str(finished_run), "shapes:tiny", str(out), "--data.data-dir", str(data_dir)]
    assert main(["embed", *where, *EMBED]) == 0
    return out


def content(folder) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_embed_writes_what_its_manifest_says(embedded, finished_run):
    manifest = json.loads((embedded / "manifest.json").read_text())
    assert (manifest["rows"], manifest["kinds"], len(manifest["parts"])) == (
        240,
        ["image", "text"],
        6,
    )
    assert manifest["origin"]["model"] == str(finished_run)
    assert manifest["origin"]["step"] == 12


@pytest.mark.usefixtures("programs")
def test_a_killed_embed_resumes_bit_identical(embedded, finished_run, data_dir, tmp_path):
    out = tmp_path / "out"
    where = [str(finished_run), "shapes:tiny", str(out), "--data.data-dir", str(data_dir)]
    with Command("embed", *where, *EMBED, output=tmp_path / "log") as command:
        command.wait_until(lambda: (out / "records/0001.json").exists())
        command.signal(signal.SIGKILL)
        assert command.end() == -signal.SIGKILL
    # Eight devices, as the fixture has them: another number rounds in another way.
    with Command("embed", *where, *EMBED, output=tmp_path / "log") as command:
        assert command.end() == 0, command.text
    with Command("embed", *where[:2], str(tmp_path / "whole"), *where[3:], *EMBED, output=tmp_path / "log") as command:  # fmt: skip
        assert command.end() == 0, command.text
    assert content(out) == content(tmp_path / "whole")


def test_index_and_search_find_rows_of_a_filter(embedded, capsys):
    assert main(["index", str(embedded)]) == 0
    assert "exact index of 240 image vectors" in capsys.readouterr().out
    where = ["--where", "label=3", "--k", "4", "--as-json"]
    assert main(["search", str(embedded / "index"), "a red circle", "row:5=0.5", *where]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["label"] for row in rows] == [3] * 4
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    nothing = ["--where", "label=99", "label>=99"]
    assert main(["search", str(embedded / "index"), "row:5", *nothing]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "No row satisfies label=99 and label>=99"


def test_a_search_with_another_model_is_refused(embedded, finished_run, tmp_path, capsys):
    args = ["search", str(embedded), "red", "--model", str(tmp_path / "gone")]
    assert main(args) == 2
    assert "no file or directory" in capsys.readouterr().err


def test_a_search_for_a_row_that_is_not_there_is_refused(embedded, capsys):
    assert main(["search", str(embedded), "row:240"]) == 2
    assert "there is no row 240: there are 240" in capsys.readouterr().err


def test_classify_writes_predictions_and_links_need_files(finished_run, data_dir, tmp_path, capsys):
    classes = tmp_path / "classes.txt"
    classes.write_text("red circle\nblue square\n")
    where = [str(finished_run), "shapes:tiny", "--data.data-dir", str(data_dir), "--split", "test"]
    rest = ["--classes", str(classes), "--batch-size", "40", "--out", str(tmp_path / "p.csv")]
    assert main(["classify", *where, *rest]) == 0
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 240
    assert all(abs(float(r["probability_1"]) + float(r["probability_2"]) - 1) < 1e-6 for r in rows)
    assert "240 pictures" in capsys.readouterr().out
    assert main(["classify", *where, *rest, "--links", str(tmp_path / "links")]) == 2
    assert "no file of its own" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))  # what it had begun to write
    rest[1] = str(tmp_path / "gone.txt")
    assert main(["classify", *where, *rest]) == 2
    assert f"--classes={tmp_path}/gone.txt: there is no such file" in capsys.readouterr().err

"""The verb `clip-jax plan`."""

import json

import jax
import pytest

from clip_jax.cli import main as cli
from clip_jax.cli.main import main
from clip_jax.planning import compiler

TINY = ("--model.name", "ViT-test", "--data.batch-size", "64", "--no-search")


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    """Devices as all tests have them, and settings of JAX that stay as they are."""
    jax.devices()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_cache_compiled_programs", lambda: None)


def test_several_topologies_make_a_table_and_a_file(capsys, tmp_path):
    (tmp_path / "run.py").write_text(
        "from clip_jax.config import *\n"
        "def get_config(): return TrainConfig(model=ModelSettings(name='ViT-test', remat='full'))\n"
    )
    arguments = ("--config", "run.py", "--topology", "h100:4", "--topology", "h200:1")
    more = ("--data.batch-size", "64", "--no-search", "--json-out", "plan.json")
    more += ("--data-bench", "bench.json")
    (tmp_path / "bench.json").write_text('{"images_per_core": 10.0, "images_per_host": 3.0}')
    assert main(["plan", *arguments, *more]) == 0
    shown = capsys.readouterr().out
    assert "ViT-test" in shown
    assert "remat full" in shown
    assert "ESTIMATE" in shown
    assert "| topology " in shown
    plans = json.loads((tmp_path / "plan.json").read_text())
    assert [plan["topology"] for plan in plans] == ["h100:4", "h200:1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--topology v5e:16x16, v5p-1024, h100:8"),
        (("--topology", "v5x:4x4"), "there is no chip 'v5x'; nearest"),
        (
            ("--topology", "h100:8", "--images-per-core", "0"),
            "images_per_core=0.0 must be a number above 0",
        ),
        (("--topology", "h100:8", "--data-bench", "nowhere.json"), "data_bench=nowhere.json is no"),
        (("--topology", "h100:8", "--data-bench", __file__), "is not of `clip-jax data bench`"),
        (("--topology", "h100:8", "--mesh.fsdp", "3"), "mesh.fsdp=3 does not make the 8 devices"),
        (("--topology", "v5e:2x2*2", "--mesh.slices", "4"), "leave mesh.slices at 1"),
        (("--topology", "h100:8", "--data.batch-size", "60"), "data.batch_size=60 does not divide"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_change(capsys, arguments, says):
    assert main(["plan", *TINY, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert says in lines[0]


def test_without_libtpu_a_pod_is_refused_with_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert main(["plan", *TINY, "--topology", "v5e:2x2"]) == 2
    assert "pip install -e '.[plan]'" in capsys.readouterr().err

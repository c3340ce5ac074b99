"""The README's examples are run as they stand."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from clip_jax.cli.main import COMMANDS
from clip_jax.data.sources.registry import FORMATS

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_library_example_runs(finished_run, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(picture)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = code.replace("runs/shapes_tiny", str(finished_run)).replace("picture.png", str(picture))
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count(".") == 2  # two cosines


def test_every_verb_and_source_that_it_names_is_there():
    assert set(re.findall(r"^    clip-jax (\w+)", README, flags=re.MULTILINE)) <= set(COMMANDS)
    for kind in FORMATS:
        assert f"`{kind}" in README


def test_the_files_that_it_links_to_are_there():
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target

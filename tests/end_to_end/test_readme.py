"""The README's examples are run as they stand, and files that pages name are there."""

import re
from pathlib import Path

import numpy as np
import pytest
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


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_files_that_a_page_names_are_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|sh))`", text):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "clip_jax")), name

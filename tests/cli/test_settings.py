"""The reference of settings is made from the settings, and is current."""

from pathlib import Path

from clip_jax.cli.main import main
from clip_jax.cli.settings import groups, page
from clip_jax.config import TrainConfig
from clip_jax.config_io import flatten, to_json

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_in_the_reference_once():
    rows = [row.name for _, rows in groups(TrainConfig) for row in rows]
    assert len(rows) == len(set(rows))
    assert set(rows) == flatten(to_json(TrainConfig())).keys()


def test_every_setting_says_what_it_means():
    silent = [row.name for _, rows in groups(TrainConfig) for row in rows if not row.meaning]
    assert not silent, "give the field a comment in clip_jax/config.py"


def test_the_page_in_the_documents_is_what_the_command_writes(capsys):
    assert main(["settings"]) == 0
    assert PAGE.read_text() == capsys.readouterr().out, "clip-jax settings > docs/settings.md"


def test_a_row_has_the_default_the_bounds_and_the_comment_of_the_code():
    lines = list(page("optimizer.b2")) + list(page("crop_scale"))
    (b2,) = [line for line in lines if "`optimizer.b2`" in line]
    assert "| `0.98` | a number at least 0 and below 1 |" in b2
    (crop,) = [line for line in lines if "crop_scale" in line]
    assert crop.endswith("| share of the area that a crop keeps |")
    assert not [line for line in lines if "`optimizer.b1`" in line]

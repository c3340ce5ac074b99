"""Settings read from Python files and from earlier runs."""

import dataclasses

import pytest

from clip_jax.config import AugmentConfig, ModelConfig, TrainConfig
from clip_jax.config_io import read_config
from clip_jax.runs.directory import RunDirectory

HEAD = "from clip_jax.config import *\n"


@pytest.fixture
def write(tmp_path):
    """`write(expression)`: a file whose get_config() returns it."""

    def make(expression: str) -> str:
        file = tmp_path / "mine.py"
        file.write_text(f"{HEAD}def get_config():\n    return {expression}\n")
        return str(file)

    return make


def test_a_file_gives_what_its_get_config_returns(write):
    assert read_config(write("TrainConfig(steps=7)")) == TrainConfig(steps=7)


def test_a_run_gives_its_own_settings_and_is_left_alone(tmp_path):
    cfg = TrainConfig(steps=7, workdir=str(tmp_path / "run"))
    with RunDirectory(cfg.workdir) as run:
        run.save_config(cfg, ModelConfig())
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert read_config(cfg.workdir) == cfg
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_what_is_not_there_is_named_with_what_is(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config file smal.py; .*configs/small.py"):
        read_config("smal.py")
    with pytest.raises(FileNotFoundError, match=r"no run directory: it has no config.json"):
        read_config("configs")


def test_a_file_of_another_kind_is_refused(write, tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"empty.py defines no function get_config"):
        read_config(str(tmp_path / "empty.py"))
    with pytest.raises(ValueError, match=r"returns dict; it must return a TrainConfig"):
        read_config(write("{}"))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ('model=ModelSettings(freeze="both")', "model.freeze='both'.* 'none', 'image', 'text'"),
        ('optimizer=OptimizerConfig(name="sgd")', "optimizer.name='sgd'.* 'adamw'"),
        ('steps="10"', "steps='10', which must be int"),
        ("steps=True", "steps=True, which must be int"),
        ("data=DataConfig(batch_size=2.5)", "data.batch_size=2.5"),
        ('data=DataConfig(source="shapes")', "data.source='shapes'"),
        ("data=DataConfig(augment=AugmentConfig(crop_scale=(1.0,)))", "data.augment.crop_scale"),
        ("data=None", "data=None"),
    ],
)
def test_a_setting_of_another_type_is_refused_by_its_name(write, expression, message):
    with pytest.raises(ValueError, match=rf"mine.py sets {message}"):
        read_config(write(f"TrainConfig({expression})"))


def test_whole_numbers_and_none_fit_where_they_are_meant(write):
    found = read_config(
        write(
            "TrainConfig(optimizer=OptimizerConfig(learning_rate=1, clip_norm=None), "
            "data=DataConfig(augment=AugmentConfig(color_jitter=(0, 0, 0, 0))))"
        )
    )
    assert found.optimizer.learning_rate == 1
    assert found.data.augment == dataclasses.replace(AugmentConfig(), color_jitter=(0, 0, 0, 0))

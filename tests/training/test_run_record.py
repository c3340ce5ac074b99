"""What a run directory says that its run is made of, and what a later start may change of it."""

import dataclasses
import logging
import types

import pytest

from clip_jax.config import LoggingConfig, ModelConfig, OptimizerConfig, TrainConfig
from clip_jax.runs.directory import RunDirectory
from clip_jax.training import run_record


class Tokenizer:
    saved = 0

    def save(self, path: str):
        self.saved += 1


def make_setup(fingerprint: str = "00", **changes):
    return types.SimpleNamespace(
        cfg=dataclasses.replace(TrainConfig(), **changes),
        model=types.SimpleNamespace(config=ModelConfig()),
        sources=[types.SimpleNamespace(fingerprint=fingerprint)],
        tokenizer=Tokenizer(),
    )


@pytest.fixture
def run(tmp_path):
    with RunDirectory(tmp_path / "run") as directory:
        yield directory


def test_a_new_run_has_nothing_to_be_compared_with_and_is_written(run):
    setup = make_setup()
    run_record.check_resume(setup, run)
    assert not (run.path / "config.json").exists()
    run_record.write(setup, run)
    assert run.load_config() == setup.cfg
    assert setup.tokenizer.saved == 1
    assert run.read_json("environment.json")["devices"]["count"] == 8
    run_record.check_resume(make_setup(), run)


def test_other_settings_or_other_data_are_refused(run):
    run_record.write(make_setup(), run)
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.0005 -> 0.1"):
        run_record.check_resume(make_setup(optimizer=OptimizerConfig(learning_rate=0.1)), run)
    with pytest.raises(ValueError, match="fingerprint"):
        run_record.check_resume(make_setup("ff"), run)


def test_a_change_that_leaves_the_numbers_alone_is_let_pass_and_said(run, caplog):
    run_record.write(make_setup(), run)
    with caplog.at_level(logging.WARNING):
        run_record.check_resume(make_setup(logging=LoggingConfig(every_steps=7)), run)
    assert "logging.every_steps: 10 -> 7" in caplog.text


def test_weights_of_the_sources_belong_to_the_data():
    weighted = make_setup()
    weighted.cfg = dataclasses.replace(
        weighted.cfg, data=dataclasses.replace(weighted.cfg.data, weights=(2.0,))
    )
    assert run_record.fingerprint(weighted) != run_record.fingerprint(make_setup())

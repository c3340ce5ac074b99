"""What a run directory says that its run is made of, and what a later start may change of it."""

import dataclasses
import json
import logging
import re
import types

import pytest

from clip_jax.config import (
    CheckpointConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainConfig,
)
from clip_jax.runs.directory import RunDirectory
from clip_jax.training import run_record


class Tokenizer:
    """Its rows are as long as it was `read`, which its file does not say."""

    kind = "words"
    read = 0

    def __init__(self, words: str):
        self.words = words

    def save(self, path):
        Tokenizer.read += 1
        path.mkdir(exist_ok=True)
        (path / "words.txt").write_text(self.words)
        (path / "description.json").write_text(f'{{"context_length": {Tokenizer.read}}}')


def make_setup(fingerprint: str = "00", words: str = "a b c", **changes):
    return types.SimpleNamespace(
        cfg=dataclasses.replace(TrainConfig(), **changes),
        model=types.SimpleNamespace(config=ModelConfig()),
        sources=[types.SimpleNamespace(fingerprint=fingerprint)],
        tokenizer=Tokenizer(words),
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
    kept = dataclasses.replace(setup.cfg, workdir=str(run.path))
    assert run.load_config() == kept
    assert (run.tokenizer / "words.txt").read_text() == "a b c"
    assert run.read_json("environment.json")["devices"]["count"] == 8
    run_record.check_resume(make_setup(), run)


def test_other_settings_or_other_data_are_refused(run):
    run_record.write(make_setup(), run)
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.0005 -> 0.1"):
        run_record.check_resume(make_setup(optimizer=OptimizerConfig(learning_rate=0.1)), run)
    with pytest.raises(ValueError, match="fingerprint"):
        run_record.check_resume(make_setup("ff"), run)


def test_another_tokenizer_is_refused_even_where_it_is_allowed(run):
    run_record.write(make_setup(), run)
    allowed = CheckpointConfig(allow_change=("tokenizer",))
    other = make_setup(tokenizer=TokenizerConfig(vocab_size=77), checkpoint=allowed)
    with pytest.raises(
        ValueError, match=r"another tokenizer\.vocab_size has no effect: .*keeps the"
    ):
        run_record.check_resume(other, run)


def test_the_files_of_a_run_whose_folder_was_removed_are_written_again(run, caplog):
    setup = make_setup()
    run_record.write(setup, run)
    run.append_metrics({"step": 1, "loss": 2.0})
    run_record.note_saved(setup, run, 2)
    assert not caplog.text
    run.path.rename(run.path.parent / "moved")
    run_record.note_saved(setup, run, 4)
    run.append_metrics({"step": 5, "loss": 1.0})
    assert "was removed or renamed" in caplog.text
    assert run.load_config().steps == setup.cfg.steps
    assert (run.tokenizer / "words.txt").exists()
    assert run.read_json("saved.json") == {"step": 4}
    assert [line["step"] for line in run.metrics()] == [5]
    with pytest.raises(ValueError, match="is in use by"):
        RunDirectory(run.path).__enter__()


def test_other_files_of_the_tokenizer_are_refused_but_of_an_older_run_which_did_not_say(run):
    run_record.write(make_setup(), run)
    run_record.check_resume(make_setup(), run)
    with pytest.raises(ValueError, match=r"tokenizer_files: .*allow-change tokenizer_files"):
        run_record.check_resume(make_setup(words="a b d"), run)
    known = run.read_json("data.json")
    del known["tokenizer_files"]
    run.write_json("data.json", known)
    run_record.check_resume(make_setup(words="a b d"), run)


def test_another_order_is_refused_by_name_also_of_a_run_that_did_not_say_its_order(
    run, monkeypatch
):
    run_record.write(make_setup(), run)
    monkeypatch.setattr(run_record.orders, "describe", lambda sources, cfg: "blocks of 8 MB")
    for known in (
        run.read_json("data.json"),
        {"fingerprint": run_record.fingerprint(make_setup())},
    ):
        run.write_json("data.json", known)
        with pytest.raises(ValueError, match=r'shuffle_order: "global" -> "blocks of 8 MB"'):
            run_record.check_resume(make_setup(), run)


def test_a_change_that_leaves_the_numbers_alone_is_let_pass_and_said(run, caplog):
    run_record.write(make_setup(), run)
    with caplog.at_level(logging.WARNING):
        run_record.check_resume(make_setup(logging=LoggingConfig(every_steps=7)), run)
    assert "logging.every_steps: 10 -> 7" in caplog.text


@pytest.mark.parametrize("removed", ["config.json", "data.json"])
def test_a_file_that_was_removed_is_no_licence_to_change_anything(run, removed):
    """The newest checkpoint has the same in its metadata."""
    run_record.write(make_setup(), run)
    (run.checkpoints / "4" / "metadata").mkdir(parents=True)
    saved = {"config": run.read_json("config.json"), **run.read_json("data.json")}
    (run.checkpoints / "4" / "metadata" / "metadata").write_text(json.dumps(saved))
    (run.path / removed).unlink()
    run_record.check_resume(make_setup(), run)
    changed = make_setup("ff", optimizer=OptimizerConfig(learning_rate=0.1))
    with pytest.raises(ValueError, match=r"fingerprint.*optimizer.learning_rate: 0.0005 -> 0.1"):
        run_record.check_resume(changed, run)


def test_weights_of_the_sources_belong_to_the_data():
    weighted = make_setup()
    weighted.cfg = dataclasses.replace(
        weighted.cfg, data=dataclasses.replace(weighted.cfg.data, weights=(2.0,))
    )
    assert run_record.fingerprint(weighted) != run_record.fingerprint(make_setup())


# --------------------------------------------------------------------------- longer and shorter


def cosine(steps: int, **changes) -> types.SimpleNamespace:
    return make_setup(steps=steps, optimizer=OptimizerConfig(warmup_steps=2), **changes)


@pytest.fixture
def done(run):
    """A run of 20 steps that is at its end."""
    run_record.write(cosine(20), run)
    (run.checkpoints / "20").mkdir(parents=True)
    return run


ALLOWED = CheckpointConfig(allow_change=("steps",))


def test_extending_a_run_names_the_jump_of_the_learning_rate_and_how_to_avoid_it(done, caplog):
    named = r"learning rate goes from 3.8e-06 at step 20 to 0.000271 at step 21; .*"
    named += "--optimizer.schedule constant --optimizer.learning-rate 3.8e-06"
    with pytest.raises(ValueError, match=f"steps: 20 -> 40.*{named}"):
        run_record.check_resume(cosine(40), done)
    run_record.check_resume(cosine(40, checkpoint=ALLOWED), done)
    assert re.search(named, caplog.text)


def test_a_constant_rate_does_not_jump(run):
    optimizer = OptimizerConfig(warmup_steps=2, schedule="constant")
    old, new = (TrainConfig(steps=steps, optimizer=optimizer) for steps in (20, 40))
    assert run_record.rate_jump(old, new, 20) == ""


def test_fewer_steps_than_are_done_are_refused(done):
    with pytest.raises(ValueError, match=r"steps=12 is fewer than the 20 steps that .* has done"):
        run_record.check_resume(cosine(12, checkpoint=ALLOWED), done)


def test_what_was_allowed_for_one_start_is_not_for_the_next(done):
    run_record.write(cosine(40, checkpoint=ALLOWED), done)
    assert done.load_config().checkpoint.allow_change == ()


def test_a_moved_run_is_resumed_where_it_is(done, tmp_path):
    moved = done.path.rename(tmp_path / "moved")
    assert RunDirectory(moved, main=False).load_config().workdir == str(moved)


def test_other_versions_and_random_numbers_are_named(done, caplog):
    saved = done.read_json("environment.json")
    saved["versions"]["jax"], saved["random"]["default_prng_impl"] = "0.1", "rbg"
    saved["devices"]["count"] = 1
    done.write_json("environment.json", saved)
    run_record.check_resume(cosine(20), done)
    assert 'versions.jax: "0.1" -> ' in caplog.text
    assert 'random.default_prng_impl: "rbg" -> "threefry2x32"' in caplog.text
    assert "count" not in caplog.text

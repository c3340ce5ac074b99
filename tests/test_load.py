"""Tests of `load`: runs and released weights."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import clip_jax
from clip_jax.config import CheckpointConfig, TrainConfig
from clip_jax.data.tokenizers.registry import ClipTokenizer, train_sentencepiece
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP, init_variables
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.directory import RunDirectory
from clip_jax.training.state import new_state
from clip_jax.weights.export import export

CONFIG = model_config("ViT-test", vocab_size=400)
CAPTIONS = ["a red circle", "a blue square"]


@pytest.fixture(scope="module")
def variables():
    return jax.jit(lambda key: init_variables(CLIP(CONFIG), key))(jax.random.key(0))


@pytest.fixture
def run(variables, tmp_path):
    """A run directory with three checkpoints, of which the second is the best."""
    keep = CheckpointConfig(
        every_steps=1, every_minutes=None, keep_last=3, keep_best_by="eval/zero_shot_top1"
    )
    with RunDirectory(tmp_path / "run") as directory:
        directory.save_config(TrainConfig(checkpoint=keep), CONFIG)
        train_sentencepiece(CAPTIONS, 400, 8).save(directory.tokenizer)
        with Checkpoints(directory.checkpoints, keep) as checkpoints:
            for step, top1 in ((1, 0.2), (2, 0.4), (4, 0.3)):
                scaled = jax.tree.map(functools.partial(jnp.multiply, step / 4), variables)
                state = new_state(
                    jax.random.key(0),
                    model=CLIP(CONFIG),
                    optimizer=optax.sgd(0.1),
                    variables=scaled,
                )
                checkpoints.save(step, state, metadata={})
                checkpoints.record(step, {"eval/zero_shot_top1": top1})
    return tmp_path / "run"


@pytest.mark.parametrize(("step", "found"), [(None, 4), (1, 1), ("best", 2)])
def test_a_runs_step_may_be_chosen(run, variables, step, found):
    scale = clip_jax.load(run, step=step).variables["params"]["logit_scale"]
    assert scale == pytest.approx(variables["params"]["logit_scale"] * found / 4)


def test_a_step_that_is_not_there_is_refused(run, variables, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 9: it has \[4, 2, 1\]"):
        clip_jax.load(run, step=9)
    with RunDirectory(run) as directory:
        directory.save_config(TrainConfig(), CONFIG)
    with pytest.raises(ValueError, match=r"checkpoint\.keep_best_by"):
        clip_jax.load(run, step="best")
    export(tmp_path / "out", CONFIG, variables, to="open_clip")
    with pytest.raises(ValueError, match="step=best is of runs"):
        clip_jax.load(tmp_path / "out", step="best")


def test_a_run_is_loaded_with_its_tokenizer(run, variables):
    loaded = clip_jax.load(run)
    chex.assert_trees_all_equal(loaded.variables, variables)
    assert loaded.model.config == CONFIG
    assert loaded.tokenizer(CAPTIONS).shape == (2, 8)
    assert loaded.preprocess.image_size == 16
    images = np.zeros((2, 16, 16, 3), np.uint8)
    assert loaded.model.apply(loaded.variables, images, method="encode_image").shape == (2, 16)


def test_a_text_that_a_runs_model_has_no_row_for_is_refused(run):
    with RunDirectory(run) as directory:
        ClipTokenizer(8).save(directory.tokenizer)  # of another run
    tokenizer = clip_jax.load(run).tokenizer
    with pytest.raises(ValueError, match=r"gives 'a red circle' the id \d+, .* 0 to 399"):
        tokenizer(CAPTIONS)


def test_a_run_that_trained_with_a_gpu_s_kernel_is_loaded_anywhere(run):
    with RunDirectory(run) as directory:
        directory.save_config(TrainConfig(), dataclasses.replace(CONFIG, attention="cudnn"))
    loaded = clip_jax.load(run)
    images = np.zeros((1, 16, 16, 3), np.uint8)
    assert loaded.model.apply(loaded.variables, images, method="encode_image").shape == (1, 16)


def test_a_run_is_loaded_at_another_image_size(run):
    loaded = clip_jax.load(run, model_config(CONFIG, image_size=32))
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert loaded.model.apply(loaded.variables, images, method="encode_image").shape == (1, 16)


def test_released_weights_are_loaded_by_the_same_name(variables, tmp_path):
    export(tmp_path / "out", CONFIG, variables, to="open_clip")
    chex.assert_trees_all_equal(clip_jax.load(tmp_path / "out").variables, variables)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        clip_jax.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a run directory"):
        clip_jax.load(tmp_path)

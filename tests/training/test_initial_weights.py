"""What a run starts from when `model.init_from` names weights, on several devices."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.config import ModelSettings, TrainConfig
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import create_model, sharding_rows
from clip_jax.training.initial_weights import check_arithmetic, check_scale, initial_variables
from clip_jax.weights.load import Loaded


def loaded(draw, **changes) -> Loaded:
    model = create_model("ViT-test", **changes)
    return Loaded(model=model, variables=draw(model), tokenizer=None, preprocess=None)


def starting(towers: str, name: str = "ViT-test") -> TrainConfig:
    settings = {"name": name, "init_from": "weights.pt", "init_towers": towers}
    return TrainConfig(model=ModelSettings(**settings))


@pytest.mark.parametrize(
    ("towers", "shape"),
    [("both", (1, 1)), ("both", (4, 2)), ("image", (8, 1)), ("image", (4, 2)), ("text", (4, 2))],
)
def test_each_device_gets_its_own_part_of_the_weights(draw, mesh, towers, shape):
    initial, place = loaded(draw), mesh(*shape)
    found = initial_variables(starting(towers), create_model("ViT-test"), initial, place)
    for tower in ("image", "text") if towers == "both" else (towers,):
        expected = initial.variables["params"][tower]
        jax.tree.map(np.testing.assert_array_equal, found["params"][tower], expected)
    rows = sharding_rows(create_model("ViT-test").config)
    places = sharding.shardings(place, found, rows=rows)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == places


def test_one_tower_may_be_taken_and_the_other_is_new(draw, mesh):
    initial = loaded(draw)
    model = create_model("ViT-test", vocab_size=80)  # another tokenizer
    found = initial_variables(starting("image"), model, initial, mesh(4, 2))["params"]
    assert found["text"]["token_embedding"].shape == (80, 32)
    assert float(found["logit_scale"]) == pytest.approx(math.log(1 / 0.07))


def test_positions_are_resized_and_anything_else_must_fit(draw, mesh):
    larger, initial = create_model("ViT-test", image_size=32), loaded(draw)
    found = initial_variables(starting("both"), larger, initial, mesh(8))
    assert found["params"]["image"]["position_embedding"].shape == (17, 32)
    more = create_model("ViT-test", vocab_size=80)
    with pytest.raises(ValueError, match=r"weights.pt does not fit .*text/token_embedding"):
        initial_variables(starting("both"), more, initial, mesh(8))


@pytest.mark.parametrize(
    ("stored", "named", "expected"),
    [
        ("ViT-B-32-quickgelu", "ViT-B-32", r"image activation quick_gelu .* ViT-B-32-quickgelu"),
        ("RN50-quickgelu", "RN50", r"text activation quick_gelu .* --model.name RN50-quickgelu"),
    ],
)
def test_weights_of_another_activation_are_refused_with_the_name_that_fits(stored, named, expected):
    stored = model_config(stored, image_size=256)
    with pytest.raises(ValueError, match=expected):
        check_arithmetic(starting("both", named), model_config(named), stored)
    check_arithmetic(starting("both"), model_config(stored.name), stored)


def test_a_difference_of_the_two_gelus_that_no_name_has_is_told(caplog):
    wanted = model_config("ViT-B-16-SigLIP")
    tanh = {"activation": "gelu_tanh"}
    stored = dataclasses.replace(
        wanted,
        vision=dataclasses.replace(wanted.vision, **tanh),
        text=dataclasses.replace(wanted.text, **tanh),
    )
    check_arithmetic(starting("both"), wanted, stored)
    assert "image activation gelu_tanh in the weights, gelu in the model" in caplog.text


@pytest.mark.parametrize("change", [{"norm_epsilon": 1e-6}, {"causal": False}, {"pool": "last"}])
def test_weights_of_another_text_arithmetic_are_refused_unless_that_tower_is_not_taken(change):
    wanted = model_config("ViT-test")
    stored = dataclasses.replace(wanted, text=dataclasses.replace(wanted.text, **change))
    with pytest.raises(ValueError, match=f"text {next(iter(change))}"):
        check_arithmetic(starting("both"), wanted, stored)
    check_arithmetic(starting("image"), wanted, stored)


def test_a_scale_that_the_first_step_would_clamp_is_refused():
    check_scale(starting("both"), 100.000_01)
    with pytest.raises(ValueError, match=r"scale of 117.3, and loss.max_logit_scale=100 .* 118"):
        check_scale(starting("both"), 117.3)

"""Tests of resizing position embeddings."""

import dataclasses

import chex
import numpy as np
import pytest

from clip_jax.models.positions import resize_grid
from clip_jax.weights.position_embeddings import as_stored, resize


def larger(config, image_size, context_length=None):
    context = context_length or config.text.context_length
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=image_size),
        text=dataclasses.replace(config.text, context_length=context),
    )


def test_the_same_size_leaves_every_number(configs, variables, caplog):
    same = resize(variables["plain"], configs["plain"], configs["plain"])
    assert not caplog.text
    chex.assert_trees_all_equal(same, variables["plain"])


@pytest.mark.parametrize("name,size", [("plain", 40), ("siglip", 40), ("resnet", 96)])
def test_positions_alone_change_and_it_is_said(name, size, configs, variables, caplog):
    new = larger(configs[name], size, 9)
    resized = resize(variables[name], configs[name], new)
    for tower in ("image", "text"):
        assert f"the positions of the {tower} tower are resized: {name} has others" in caplog.text
    before, after = variables[name]["params"], resized["params"]
    assert after["text"]["position_embedding"].shape[0] == 9
    owner = (lambda p: p["image"]["pool"]) if name == "resnet" else (lambda p: p["image"])
    grid = size // (32 if name == "resnet" else 8)
    extra = 0 if name == "siglip" else 1
    assert owner(after)["position_embedding"].shape[0] == grid**2 + extra
    np.testing.assert_array_equal(
        owner(after)["position_embedding"][:extra], owner(before)["position_embedding"][:extra]
    )
    chex.assert_trees_all_equal(after["text"]["transformer"], before["text"]["transformer"])
    assert before["text"]["position_embedding"].shape[0] == 6  # the old ones were left alone


def test_a_plane_stays_a_plane():
    y_hw, x_hw = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing="ij")
    plane_LD = np.stack([y_hw.ravel(), x_hw.ravel()], axis=1).astype(np.float32)
    resized_hwD = resize_grid(plane_LD, 0, 8, 16).reshape(16, 16, 2)
    inside = np.diff(resized_hwD[4:-4, 4:-4, 0], axis=0)
    np.testing.assert_allclose(inside, 0.5, atol=1e-5)


def test_the_stored_size_is_found_from_the_number_of_positions(configs):
    assert as_stored(configs["plain"], {"image": 26, "text": 6}).vision.image_size == 40
    assert as_stored(configs["siglip"], {"image": 25, "text": 4}).text.context_length == 4
    assert as_stored(configs["resnet"], {"image": 10, "text": 6}).vision.image_size == 96
    with pytest.raises(ValueError, match="square grid"):
        as_stored(configs["plain"], {"image": 27, "text": 6})

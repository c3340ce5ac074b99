"""The parameters of a tower in two parts, and whole again."""

import dataclasses

import jax
import numpy as np
import pytest

from clip_jax.models.architectures import model_config
from clip_jax.models.freezing import join_blocks, merge, split
from clip_jax.sharding import path_name
from clip_jax.training.optimizer import scale_by_layer

TOWERS = {
    name: dataclasses.replace(tower, depth=3)
    for name, tower in model_config("ViT-test").towers.items()
}


def names(tree) -> set[str]:
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("towers", [("image",), ("text",), ("image", "text"), ()])
@pytest.mark.parametrize("unlocked", [0, 1, 2])
def test_the_parts_are_the_whole_tree(towers, unlocked):
    params = {
        tower: {
            "position_embedding": np.arange(3),
            "pre_norm": {"scale": np.arange(4)},
            "transformer": {"blocks": {"mlp": {"kernel": np.arange(6).reshape(3, 2)}}},
            "post_norm": {"scale": np.arange(5)},
            "projection": {"kernel": np.arange(7)},
        }
        for tower in ("image", "text")
    } | {"logit_scale": np.float32(2)}
    trained, frozen = split(params, {name: TOWERS[name] for name in towers}, unlocked=unlocked)
    assert not names(trained) & names(frozen)
    for tower in towers:
        assert "position_embedding" in frozen[tower]
        assert (tower in trained) == (unlocked > 0)
        if unlocked:
            assert trained[tower].keys() == {"transformer", "post_norm", "projection"}
            assert len(trained[tower]["transformer"]["blocks"]["mlp"]["kernel"]) == unlocked
    joined = join_blocks(merge(trained, frozen))
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_a_tower_with_all_blocks_unlocked_has_none_that_is_locked():
    blocks = {"kernel": np.ones((2, 3))}
    params = {"image": {"transformer": {"blocks": blocks}, "class_embedding": np.ones(3)}}
    trained, frozen = split(params, {"image": TOWERS["image"]}, unlocked=2)
    assert frozen == {"image": {"class_embedding": params["image"]["class_embedding"]}}
    assert trained["image"]["transformer"]["blocks"]["kernel"].shape == (2, 3)


def test_a_depth_that_counts_no_stacked_blocks_is_refused():
    apart = {"block_0": {"kernel": np.ones((2, 3))}, "block_1": {"kernel": np.ones((2, 3))}}
    stages = {"transformer": {"blocks": {"a": np.ones((2, 3)), "b": np.ones((4, 3))}}}
    more = {"transformer": {"blocks": {"a": np.ones((4, 3))}}}
    for params in (apart, stages, more):
        with pytest.raises(ValueError, match="vision_transformer with depth=3 has none"):
            split({"image": params}, {"image": TOWERS["image"]}, unlocked=1)
        with pytest.raises(ValueError, match="unlocked_blocks go by the blocks of"):
            scale_by_layer(0.5, TOWERS).init({"image": params, "logit_scale": np.ones(())})
    split({"image": apart}, {"image": TOWERS["image"]})  # all of it is frozen

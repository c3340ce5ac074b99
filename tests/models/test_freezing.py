"""The parameters of a tower in two parts, and whole again."""

import jax
import numpy as np
import pytest

from clip_jax.models.architectures import model_config
from clip_jax.models.freezing import join_blocks, merge, split
from clip_jax.sharding import path_name

TOWERS = model_config("ViT-test").towers


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

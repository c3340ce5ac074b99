"""Muon orthogonalises matrices whose axes it knows, and says what it leaves to Adam."""

import dataclasses
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import OptimizerConfig
from clip_jax.models.clip import create_model, init_variables
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.sharding import path_name
from clip_jax.training.optimizer import make_optimizer

PLAIN = {"warmup_steps": 0, "schedule": "constant"}
CFG = OptimizerConfig(name="muon", weight_decay=0.0, learning_rate=1.0, **PLAIN)


def named(tree) -> dict:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def arrays(**shapes) -> dict:
    """Random ones, by their paths with two underscores for each slash."""
    tree, rng = {}, np.random.default_rng(0)
    for path, shape in shapes.items():
        *parts, last = path.split("__")
        at = tree
        for part in parts:
            at = at.setdefault(part, {})
        at[last] = jnp.asarray(rng.normal(size=shape), jnp.float32)
    return tree


def first_update(params: dict, towers=None, name: str = "muon") -> dict:
    optimizer = make_optimizer(dataclasses.replace(CFG, name=name), 10, towers=towers)
    return named(optimizer.update(params, optimizer.init(params), params)[0])


def test_muon_moves_matrices_as_far_as_adam_would():
    rng = np.random.default_rng(0)
    grads = {
        "blocks": {
            "mlp": {"up": {"kernel": rng.normal(size=(2, 16, 48))}},
            "attention": {"out": {"kernel": rng.normal(size=(2, 16, 16))}},
            "conv": {"kernel": rng.normal(size=(2, 3, 3, 4, 16))},
        },
        "pool": {"query": {"kernel": rng.normal(size=(16, 24))}},
        "stem": {"conv": {"kernel": rng.normal(size=(3, 3, 4, 16))}},
    }
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), grads)
    grads["blocks"] = jax.tree.map(lambda x: x.at[0].multiply(100), grads["blocks"])
    optimizer = make_optimizer(CFG, 10)
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    for name, update in named(updates).items():
        stacked = update.shape[:1] if name.startswith("blocks") else ()
        matrix = np.asarray(update).reshape(*stacked, -1, update.shape[-1])
        size = np.sqrt(np.square(matrix).mean(axis=(-2, -1)))
        assert ((size > 0.12) & (size < 0.25)).all(), name
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert singular.max() / singular.min() < 3, name


@pytest.mark.parametrize("name", ["ViT-test", "RN-test", "ViT-B-16-SigLIP"])
def test_a_matrix_of_queries_keys_or_values_is_as_wide_as_a_head(name):
    model = create_model(name)
    shapes = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))["params"]
    heads = {"image": [], "text": []}
    for path, leaf in named(shapes).items():
        side, _, rest = path.partition("/")
        if side in heads and re.search(r"(qkv|query|key|value|key_value)/kernel$", rest):
            heads[side].append(leaf.shape[-1] // model.config.towers[side].matrices_of(rest))
    for side, widths in heads.items():
        tower = model.config.towers[side]
        width = 32 * tower.width if isinstance(tower, ResNetConfig) else tower.width
        assert widths and set(widths) == {width // tower.heads}, side


def test_muon_takes_queries_keys_and_values_of_each_head_as_matrices_of_their_own():
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 16, 48)) * np.repeat(10.0 ** np.arange(-6, 6), 4)  # columns' sizes
    out = rng.normal(size=(2, 16, 16))
    attention = {"qkv": {"kernel": qkv}, "out": {"kernel": out}}
    query = rng.normal(size=(64, 64)) * np.repeat([1e-3, 1e3], 32)
    params = {
        "text": {"transformer": {"blocks": {"attention": attention}}},
        "image": {"pool": {"query": {"kernel": query}}},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    towers = {"text": TextConfig(width=16, heads=4), "image": ResNetConfig(width=2, heads=2)}
    optimizer = make_optimizer(CFG, 10, towers=towers)
    state = optimizer.init(params)
    updates, after = optimizer.update(params, state, params)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    found = named(updates)
    heads = found["text/transformer/blocks/attention/qkv/kernel"].reshape(2, 16, 12, 4)
    pool = found["image/pool/query/kernel"].reshape(1, 64, 2, 32)
    for matrix in (*np.moveaxis(heads, 2, 0), *np.moveaxis(pool, 2, 0)):
        singular = np.linalg.svd(matrix, compute_uv=False)
        assert (
            singular.max() / singular.min() < 3
        )  # one matrix for all would leave the small ones small
        assert 0.05 < np.sqrt(np.square(matrix).mean()) < 0.3
    whole = np.linalg.svd(found["text/transformer/blocks/attention/out/kernel"], compute_uv=False)
    assert whole.max() / whole.min() < 3


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("text__pool__value__kernel", (16, 2, 8)),  # an axis for heads, or a convolution of one
        ("text__stem__conv__kernel", (3, 16, 8)),
        (
            "text__transformer__blocks__query__kernel",
            (2, 16, 4, 4),
        ),  # else the blocks would be mixed
        ("text__head__kernel", (16, 8)),
        ("text__transformer__blocks__bias", (2, 8)),
    ],
)
def test_adam_moves_what_is_no_matrix_of_known_axes(path, shape):
    params = arrays(**{path: shape})
    ((_, found),) = first_update(params).items()
    ((_, adams),) = first_update(params, name="adamw").items()
    np.testing.assert_allclose(found, adams, rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("text__transformer__blocks__up__kernel", (2, 16, 8)),
        ("text__blocks__up__kernel", (16, 8)),
        ("text__pool__out__kernel", (16, 8)),
        ("text__stem__conv__kernel", (3, 3, 4, 8)),
    ],
)
def test_muon_moves_what_is_one(path, shape):
    params = arrays(**{path: shape})
    ((_, found),) = first_update(params).items()
    ((_, adams),) = first_update(params, name="adamw").items()
    assert not np.allclose(found, adams, rtol=0.1)


def test_a_tower_that_is_left_to_adam_is_named_once(caplog):
    towers = {"image": ResNetConfig(width=2, heads=2), "text": TextConfig(width=16, heads=4)}
    params = arrays(image__conv_1__kernel=(3, 3, 4, 8), text__blocks__up__kernel=(2, 16, 8))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            first_update(params, towers)
        first_update({"text": params["text"]}, towers)  # the other one is frozen
    (message,) = caplog.messages
    assert "leaves all of the image tower resnet to Adam" in message


def test_matrices_that_do_not_divide_a_kernel_are_refused_by_its_name():
    towers = {"text": TextConfig(width=16, heads=4)}
    params = arrays(text__blocks__attention__qkv__kernel=(2, 16, 40))
    with pytest.raises(
        ValueError, match=r"matrices_of\('blocks/attention/qkv/kernel'\) is 12, .* 40"
    ):
        first_update(params, towers)

"""The vision transformer: patches, heads, and patches dropped in training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.architectures import model_config
from clip_jax.models.tower import Compute
from clip_jax.models.towers.vision_transformer import (
    PatchEmbedding,
    VisionTransformer,
    drop_patches,
    sincos2d,
)

CONFIG = model_config("ViT-test").vision  # 16 pixels, patches of 8: a grid of 2 x 2
MAP = {"pool": "map", "class_token": False}
MEAN = {"pool": "mean"}
FLOAT32 = Compute(dtype=jnp.float32)


def tower(**changes) -> VisionTransformer:
    config = dataclasses.replace(CONFIG, **changes)
    return VisionTransformer(config, embed_dim=16, compute=FLOAT32)


def drawn(model, images_BHWC) -> dict:
    shapes = jax.eval_shape(model.init, jax.random.key(0), images_BHWC)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, s.dtype), shapes)


@pytest.fixture(scope="module")
def images_BHWC():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 16, 16, 3)), jnp.float32)


def test_patches_are_embedded_as_a_strided_convolution_would():
    images_BHWC = jnp.asarray(np.random.default_rng(1).normal(size=(2, 19, 17, 3)), jnp.float32)
    embedding = PatchEmbedding(12, 8, True, jnp.float32)
    variables = drawn(embedding, images_BHWC)
    expected = jax.lax.conv_general_dilated(
        images_BHWC,
        variables["params"]["kernel"],
        (8, 8),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = embedding.apply(variables, images_BHWC)
    assert found.shape == (2, 4, 12)  # what is left of a last patch is cropped
    expected = expected.reshape(2, 4, 12) + variables["params"]["bias"][None, None]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("pool", [{}, MEAN, MEAN | {"pool_before_norm": True}, MAP], ids=str)
def test_every_head_sees_all_patches_and_only_its_own_image(pool, images_BHWC):
    model = tower(**pool)
    variables = drawn(model, images_BHWC)
    apply = jax.jit(lambda v, x: model.apply(v, x)[0])
    base = apply(variables, images_BHWC)
    assert base.shape == (3, 16)
    for row, column in ((0, 0), (0, 8), (8, 0), (8, 8)):
        changed = apply(variables, images_BHWC.at[0, row, column].add(3.0))
        assert not np.allclose(changed[0], base[0], atol=1e-4)
        np.testing.assert_allclose(changed[1:], base[1:], atol=1e-5)


def test_means_are_of_the_patches_and_not_of_the_class_token():
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 32)), jnp.float32)
    changed_BLD = x_BLD.at[:, 0].add(7.0)

    def pooled(x_BLD, **changes):
        norm = lambda y: 2 * y  # noqa: E731
        return tower(**changes).pool(x_BLD, norm)

    for order in ({}, {"pool_before_norm": True}):
        found = pooled(x_BLD, **MEAN, **order)
        np.testing.assert_allclose(found, 2 * x_BLD[:, 1:].mean(axis=1), atol=1e-5)
        np.testing.assert_array_equal(found, pooled(changed_BLD, **MEAN, **order))


def test_the_class_token_is_read_after_the_last_block():
    model = tower(projection=False)
    images_BHWC = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
    (found_BD, tokens_BLD), _ = model.init_with_output(jax.random.key(0), images_BHWC)
    class_BD = np.asarray(tokens_BLD[:, 0], np.float64)
    exact_BD = (class_BD - class_BD.mean(axis=1, keepdims=True)) / class_BD.std(
        axis=1, keepdims=True
    )
    np.testing.assert_allclose(found_BD, exact_BD, atol=1e-3)


def test_without_a_projection_the_embedding_has_the_width():
    model = tower(**MAP, projection=False)
    images_BHWC = jnp.zeros((1, 16, 16, 3))
    assert (
        jax.eval_shape(model.init_with_output, jax.random.key(0), images_BHWC)[0][0].shape[1] == 32
    )


def test_dropped_patches_are_random_by_image_in_order_and_never_the_class_token():
    x_BLD = jnp.broadcast_to(jnp.arange(17.0)[:, None], (64, 17, 1))
    kept_BL = drop_patches(x_BLD, jax.random.key(0), 0.5, class_token=True)[:, :, 0]
    assert kept_BL.shape == (64, 9)
    assert (kept_BL[:, 0] == 0).all()
    assert (jnp.diff(kept_BL, axis=1) > 0).all()
    assert len({tuple(row) for row in kept_BL.tolist()}) > 32
    counts = np.bincount(np.asarray(kept_BL[:, 1:], int).ravel(), minlength=17)[1:]
    assert counts.min() > 16  # of 64; half of them are to be expected
    one = drop_patches(x_BLD, jax.random.key(0), 0.999, class_token=False)
    assert one.shape == (64, 1, 1)


def test_patches_are_left_out_in_training_alone(images_BHWC):
    model = tower(patch_dropout=0.5)
    variables = drawn(tower(), images_BHWC)

    @functools.partial(jax.jit, static_argnames="train")
    def apply(*args, **kwargs):
        return model.apply(*args, **kwargs)[0]

    whole = apply(variables, images_BHWC)
    np.testing.assert_allclose(whole, jax.jit(tower().apply)(variables, images_BHWC)[0], atol=1e-6)
    rngs = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
    one, again, other = (apply(variables, images_BHWC, train=True, rngs=r) for r in rngs)
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other) and not np.allclose(one, whole)


def test_fixed_positions_tell_all_places_apart():
    position_LD = sincos2d(4, 32, class_token=True)
    assert position_LD.shape == (17, 32) and position_LD.dtype == np.float32
    assert (position_LD[0] == 0).all()
    distances = np.linalg.norm(position_LD[1:, None] - position_LD[None, 1:], axis=-1)
    assert distances[~np.eye(16, dtype=bool)].min() > 0.1
    shapes = jax.eval_shape(
        tower(position="sincos2d").init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
    )
    assert "position_embedding" not in shapes["params"]

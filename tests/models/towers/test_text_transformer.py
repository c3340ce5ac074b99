"""The text tower: what it reads, and where."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.architectures import model_config
from clip_jax.models.tower import Compute
from clip_jax.models.towers.text_transformer import TextTransformer

CONFIG = model_config("ViT-test").text  # 8 tokens, ids below 64
END = 63
FLOAT32 = Compute(dtype=jnp.float32)


def tower(**changes) -> TextTransformer:
    return TextTransformer(dataclasses.replace(CONFIG, **changes), embed_dim=16, compute=FLOAT32)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(tower().init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, s.dtype), shapes)


def embed(variables, *rows, **changes) -> np.ndarray:
    tokens_BL = jnp.asarray(rows, jnp.int32)
    return np.asarray(jax.jit(tower(**changes).apply)(variables, tokens_BL)[0])


def test_a_text_is_read_at_its_end_token_and_not_beyond(variables):
    rows = [[1, 2, 3, END, 0, 0, 0, 0], [1, 2, 3, END, 9, 9, 9, 9], [1, 2, 4, END, 0, 0, 0, 0]]
    one, padded, other = embed(variables, *rows)
    np.testing.assert_array_equal(one, padded)
    assert not np.allclose(one, other)


def test_a_bidirectional_text_is_read_at_its_last_place(variables):
    rows = [[1, 2, 3, END, 0, 0, 0, 0], [1, 2, 3, END, 0, 0, 0, 5], [9, 2, 3, END, 0, 0, 0, 0]]
    one, last, first = embed(variables, *rows, causal=False, pool="last")
    assert not np.allclose(one, last) and not np.allclose(one, first)


def test_a_shorter_row_is_the_same_text(variables):
    long = embed(variables, [1, 2, END, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(embed(variables, [1, 2, END]), long, atol=1e-6)


def test_the_order_of_words_matters(variables):
    one, other = embed(variables, [1, 2, END, 0, 0, 0, 0, 0], [2, 1, END, 0, 0, 0, 0, 0])
    assert not np.allclose(one, other)


def test_a_projection_may_have_a_bias():
    shapes = jax.eval_shape(
        tower(projection_bias=True).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
    )
    assert shapes["params"]["projection"]["bias"].shape == (16,)

"""Inputs that cannot be meant are refused, where their values are there and under checkify."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP, check_images, check_tokens

CONFIG = model_config("ViT-test")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
NORMALIZED = (PIXELS / 255 - CONFIG.preprocess.mean) / CONFIG.preprocess.std


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (PIXELS.astype(np.int32), "int32"),
        (PIXELS.astype(np.int8), "int8"),
        (PIXELS > 7, "bool"),
        (PIXELS.astype(np.float32), "normalised already"),
        (np.where(PIXELS > 250, np.nan, 0).astype(np.float32), "NaN"),
        (np.full((1, 16, 16, 3), np.inf, np.float32), "NaN"),
        (np.full((1, 16, 16, 3), -300.0, np.float32), "normalised already"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        check_images(jnp.asarray(images), CONFIG.preprocess)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_normalised_images_and_noise_on_them_pass(dtype):
    noise = np.random.default_rng(0).normal(size=NORMALIZED.shape)
    for images in (NORMALIZED, NORMALIZED + noise, noise):
        check_images(jnp.asarray(images, dtype), CONFIG.preprocess)
    check_images(jnp.asarray(PIXELS), CONFIG.preprocess)


@pytest.mark.parametrize("token", [64, 49_407, -1])
def test_a_token_outside_the_vocabulary_is_refused(token):
    tokens_BL = jnp.asarray([[0, 5, 63], [1, token, 2]])
    with pytest.raises(ValueError, match="from 0 to 63"):
        check_tokens(tokens_BL, CONFIG.text.vocab_size)
    check_tokens(tokens_BL[:1], CONFIG.text.vocab_size)


def test_traced_inputs_are_checked_under_checkify_alone():
    def encode(images, tokens):
        check_images(images, CONFIG.preprocess)
        check_tokens(tokens, CONFIG.text.vocab_size)
        return images.sum() + tokens.sum()

    wrong = (PIXELS.astype(np.float32), np.full((2, 3), 99))
    right = (NORMALIZED.astype(np.float32), np.zeros((2, 3), int))
    jax.jit(encode)(*wrong)
    checked = jax.jit(checkify.checkify(encode))
    assert checked(*right)[0].get() is None
    assert "normalised already" in checked(*wrong)[0].get()
    assert "vocabulary" in checked(right[0], wrong[1])[0].get()
    # The checks stand in no one's way.
    jax.grad(encode)(right[0], right[1])
    jax.vmap(encode)(right[0][:, None], right[1][:, None])
    jax.jit(jax.checkpoint(encode))(*right)
    jax.export.export(jax.jit(encode))(*right)


def test_a_model_refuses_them_too():
    model = CLIP(CONFIG)
    variables = jax.jit(model.init)(jax.random.key(0), PIXELS, np.zeros((2, 8), np.int32))
    with pytest.raises(ValueError, match="int32"):
        model.apply(variables, PIXELS.astype(np.int32), method="encode_image")
    with pytest.raises(ValueError, match="vocabulary"):
        model.apply(variables, np.full((2, 8), 64), method="encode_text")
    model.apply(variables, NORMALIZED.astype(np.float32), method="encode_image")


@pytest.mark.parametrize("name", ["ViT-test", "RN-test"])
def test_variables_and_inputs_may_be_numpys(name):
    config = model_config(name)
    model, size = CLIP(config), config.vision.image_size
    inputs = np.zeros((2, size, size, 3), np.uint8), np.asarray([[1, 5, 63], [1, 2, 63]], np.int32)
    variables = model.init(jax.random.key(0), *inputs)
    in_numpy = jax.tree.map(np.asarray, variables)
    jax.tree.map(
        np.testing.assert_array_equal,
        model.apply(in_numpy, *inputs),
        model.apply(variables, *inputs),
    )


def test_a_model_that_is_not_checked_has_no_checks_and_is_called_without_python():
    """JAX calls a program with an effect, such as a check, through Python."""
    tokens = np.ones((2, 8), np.int32)
    variables = jax.jit(CLIP(CONFIG).init)(jax.random.key(0), PIXELS, tokens)

    def traced(method, x, **changes):
        model = CLIP(CONFIG, **changes)
        return jax.make_jaxpr(lambda x: model.apply(variables, x, method=method))(x)

    for method, x in (("encode_image", NORMALIZED.astype(np.float32)), ("encode_text", tokens)):
        assert traced(method, x).effects
        assert not traced(method, x, checked=False).effects
    with pytest.raises(ValueError, match="vocabulary"):  # whose values are there
        CLIP(CONFIG, checked=False).apply(variables, np.full((2, 8), 64), method="encode_text")


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("wrong", [-1, 64, 49_407])
def test_traced_ids_that_no_row_is_for_make_their_texts_nan_and_no_others(wrong, checked):
    """Where nobody calls `checkify` an index would clamp or wrap them."""
    model, tokens = CLIP(CONFIG, checked=checked), np.ones((2, 8), np.int32)
    variables = jax.jit(CLIP(CONFIG).init)(jax.random.key(0), PIXELS, tokens)
    encode = lambda tokens: model.apply(variables, tokens, method="encode_text")  # noqa: E731
    expected = jax.jit(encode)(tokens)
    tokens[1, 3] = wrong
    found = jax.jit(encode)(tokens)
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.isfinite(expected).all() and np.isnan(found[1]).all()
    one_by_one = jax.vmap(lambda tokens_L: encode(tokens_L[None])[0])(tokens)
    np.testing.assert_array_equal(np.isnan(one_by_one), np.isnan(found))


@pytest.mark.parametrize("tower", ["image", "text"])
def test_derivatives_are_those_that_the_docstring_names(tower):
    model = CLIP(CONFIG)
    images, tokens = NORMALIZED.astype(np.float32), np.ones((2, 8), np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images, tokens)

    def embed(scale):
        params = jax.tree.map(lambda leaf: leaf * scale, variables["params"])
        inputs = images if tower == "image" else tokens
        return model.apply({"params": params}, inputs, method=f"encode_{tower}")

    assert "custom_vjp" in CLIP.__doc__
    for forward in (lambda: jax.jvp(embed, (1.0,), (1.0,)), lambda: jax.jacfwd(embed)(1.0)):
        with pytest.raises(TypeError, match="custom_vjp"):
            forward()
    z_BE, pullback = jax.vjp(embed, 1.0)
    _, along = jax.vjp(lambda d_BE: pullback(d_BE)[0], jnp.zeros_like(z_BE))
    near = (embed(1.0 + 1e-2) - embed(1.0 - 1e-2)) / 2e-2
    np.testing.assert_allclose(along(jnp.float32(1.0))[0], near, atol=2e-2 * np.abs(near).max())

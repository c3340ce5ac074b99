"""The whole model: unit embeddings, precision, pixels, initialisation, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from clip_jax.config import ModelConfig
from clip_jax.models.clip import CLIP, create_model, normalize_pixels, unit_length
from clip_jax.sharding import path_name


def drawn(model: CLIP) -> dict:
    size, length = model.config.vision.image_size, model.config.text.context_length
    shapes = jax.eval_shape(
        model.init,
        jax.random.key(0),
        jnp.zeros((1, size, size, 3), jnp.uint8),
        jnp.zeros((1, length), jnp.int32),
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, s.dtype), shapes)


@pytest.fixture(scope="module")
def variables():
    return drawn(create_model("ViT-test"))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    images_BHWC = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    return jnp.asarray(images_BHWC), jnp.asarray(rng.integers(1, 64, (3, 8)), jnp.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_float32_and_of_unit_length_whatever_the_towers_compute_in(
    dtype, variables, inputs
):
    model = create_model("ViT-test", dtype=dtype)
    outputs = jax.jit(model.apply)(variables, *inputs)
    for z_BE in (outputs.image, outputs.text):
        assert z_BE.shape == (3, 16) and z_BE.dtype == jnp.float32
        np.testing.assert_allclose(jnp.linalg.norm(z_BE, axis=1), 1, rtol=1e-6)
    assert outputs.logit_scale == jnp.exp(variables["params"]["logit_scale"])
    assert outputs.logit_bias is None


def test_a_bfloat16_model_has_float32_parameters_and_gradients(variables, inputs):
    model = create_model("ViT-test", dtype="bfloat16")

    def loss(variables):
        outputs = model.apply(variables, *inputs)
        return (outputs.image * outputs.text).sum()

    shapes = drawn(model), jax.eval_shape(jax.grad(loss), variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    text = jax.jit(loss).lower(variables).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("bf16" in line for line in products)


def test_methods_embed_alone_what_a_call_embeds_together(variables, inputs):
    model = create_model("ViT-test")
    both = jax.jit(model.apply)(variables, *inputs)
    for method, x, z_BE in zip(("encode_image", "encode_text"), inputs, both):
        alone = jax.jit(lambda v, x, method=method: model.apply(v, x, method=method))(variables, x)
        np.testing.assert_allclose(alone, z_BE, atol=1e-6)


def test_pixels_and_normalised_numbers_are_the_same_image(inputs):
    preprocess = create_model("ViT-B-32").config.preprocess
    images_BHWC = inputs[0]
    floats_BHWC = (np.asarray(images_BHWC) / 255 - preprocess.mean) / preprocess.std
    normalised = normalize_pixels(images_BHWC, preprocess)
    assert normalised.dtype == jnp.float32
    np.testing.assert_allclose(normalised, floats_BHWC, atol=1e-5)
    floats_BHWC = jnp.asarray(floats_BHWC, jnp.float32)
    assert normalize_pixels(floats_BHWC, preprocess) is floats_BHWC


@pytest.mark.parametrize(
    ("name", "width"),
    [("ViT-B-32", 512), ("ViT-L-14", 768), ("RN50", 1024), ("ViT-B-16-SigLIP", 768)],
)
def test_embeddings_have_the_width_that_the_architecture_is_known_for(name, width):
    model = create_model(name)
    size, length = model.config.vision.image_size, model.config.text.context_length
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images, tokens)
    for z in (outputs.image, outputs.text):
        assert z.shape == (2, width) and z.dtype == jnp.float32
    assert (outputs.logit_bias is not None) == ("SigLIP" in name)


def test_a_row_of_zeros_has_a_finite_gradient():
    gradient = jax.grad(lambda x: unit_length(x).sum())(jnp.zeros((1, 4)))
    assert jnp.isfinite(gradient).all()
    np.testing.assert_allclose(unit_length(jnp.array([[3e-8, 4e-8]])), [[0.6, 0.8]], rtol=1e-5)


def test_a_frozen_tower_works_in_training_as_after_it(variables, inputs):
    model = create_model("ViT-test", patch_dropout=0.5)

    def train(frozen: tuple[str, ...]):
        return jax.eval_shape(
            lambda v: model.apply(v, *inputs, train=True, frozen=frozen), variables
        )

    assert train(("image",)).image.shape == (3, 16)  # it draws no patches to leave out
    with pytest.raises(errors.InvalidRngError):
        train(("text",))


@pytest.fixture(scope="module")
def fresh():
    """Parameters by name of a small model with enough numbers in each to tell a deviation."""
    small = create_model("ViT-test", image_size=64, context_length=64).config
    wide = {"width": 64, "mlp_width": 256}
    vision, text = (dataclasses.replace(tower, **wide) for tower in (small.vision, small.text))
    model = CLIP(dataclasses.replace(small, embed_dim=64, vision=vision, text=text))
    images, tokens = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.zeros((1, 64), jnp.int32)
    init = jax.jit(lambda key: model.init(key, images, tokens)["params"]).lower(jax.random.key(0))
    params = init.compile(compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_parameters_begin_with_the_deviations_of_the_recipe(fresh):
    left, D, depth = dict(fresh), 64, 2
    out = D**-0.5 * (2 * depth) ** -0.5
    expected = {
        "text/token_embedding": 0.02,
        "text/position_embedding": 0.01,
        "text/projection/kernel": D**-0.5,
        "image/projection/kernel": D**-0.5,
        "image/class_embedding": D**-0.5,
        "image/position_embedding": D**-0.5,
        "image/patch_embedding/kernel": (3 * 8 * 8) ** -0.5,
    }
    for tower in ("image", "text"):
        block = f"{tower}/transformer/blocks"
        expected |= {
            f"{block}/attention/qkv/kernel": D**-0.5,
            f"{block}/attention/out/kernel": out,
            f"{block}/mlp/up/kernel": (2 * D) ** -0.5,
            f"{block}/mlp/down/kernel": out,
        }
    for name, std in expected.items():
        leaf = left.pop(name)
        few = 4 / (2 * leaf.size) ** 0.5  # four deviations of an estimate from so many numbers
        assert float(leaf.std()) == pytest.approx(std, rel=few), name
        assert abs(float(leaf.mean())) < 4 * std / leaf.size**0.5, name
        assert "/blocks/" not in name or not np.allclose(leaf[0], leaf[1]), name
    assert float(left.pop("logit_scale")) == pytest.approx(np.log(1 / 0.07), rel=1e-6)
    for name, leaf in left.items():
        assert (leaf == (1 if name.endswith("scale") else 0)).all(), name


def test_what_a_model_cannot_take_is_refused_while_it_is_traced(variables, inputs):
    model = create_model("ViT-test")
    images_BHWC, tokens_BL = inputs
    with pytest.raises(ValueError, match=r"9 long and the model's context_length is 8"):
        model.apply(variables, jnp.ones((1, 9), jnp.int32), method="encode_text")
    for images in (images_BHWC[:, :8], images_BHWC[0], images_BHWC.tolist()):
        with pytest.raises(
            ValueError, match=r"images must be an array of shape \(batch, 16, 16, 3\)"
        ):
            model.apply(variables, images, method="encode_image")
    for tokens in (tokens_BL.astype(jnp.float32), tokens_BL > 3, tokens_BL[0], tokens_BL.tolist()):
        with pytest.raises(
            ValueError, match=r"tokens must be an array of integers \(batch, length"
        ):
            model.apply(variables, tokens, method="encode_text")
    with pytest.raises(ValueError, match="tokens are 0 long"):
        model.apply(variables, tokens_BL[:, :0], method="encode_text")
    with pytest.raises(ValueError, match="ViT-B-32"):
        create_model("ViT-B-23")


def test_a_model_is_a_value_that_jit_can_tell_from_others():
    assert create_model("ViT-test") == create_model("ViT-test")
    assert hash(create_model("ViT-test")) == hash(CLIP(create_model("ViT-test").config))
    assert create_model("ViT-test") != create_model("ViT-test", remat="full")
    assert create_model(ModelConfig(embed_dim=8)).config.embed_dim == 8

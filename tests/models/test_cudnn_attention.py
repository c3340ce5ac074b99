"""Every registered architecture can be trained with cuDNN's attention, by JAX's own checks of its shapes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import ModelConfig
from clip_jax.models import attention as module
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.attention import attention, plain_attention
from clip_jax.models.clip import CLIP
from clip_jax.planning.gpu_compiler import absent_gpu

AMPERE, HOPPER = (
    SimpleNamespace(platform="gpu", device_kind=name, compute_capability=capability)
    for name, capability in (("NVIDIA A100-SXM4-80GB", "8.0"), ("NVIDIA H100 80GB HBM3", "9.0"))
)


def shapes(config: ModelConfig) -> tuple[tuple[int, int, bool], ...]:
    """Length, width of a head and whether it is causal, of the attention of each tower."""
    vision, text = config.vision, config.text
    found = [(text.context_length, text.width // text.heads, text.causal)]
    if vision.depth:
        found.append((vision.grid**2 + vision.class_token, vision.width // vision.heads, False))
    return tuple(found)


SHAPES = sorted({shape for config in ARCHITECTURES.values() for shape in shapes(config)})


def trace_gradient(length: int, width: int, causal: bool) -> str:
    x = jax.ShapeDtypeStruct((2, length, 3, width), jnp.bfloat16)

    def loss(q, k, v):
        return attention(q, k, v, causal=causal).astype(jnp.float32).sum()

    return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(x, x, x))


@pytest.mark.parametrize("device", [AMPERE, HOPPER], ids=lambda device: device.device_kind)
@pytest.mark.parametrize(("length", "width", "causal"), SHAPES)
def test_the_shapes_of_every_architecture_pass_in_training(length, width, causal, device):
    with absent_gpu(device):
        program = trace_gradient(length, width, causal)
    assert "dot_product_attention_fwd_wrapper" in program
    assert "dot_product_attention_bwd_wrapper" in program


def test_jax_still_refuses_odd_lengths_unless_they_are_made_even():
    """When this fails, `cudnn_attention` need not add a position any more."""
    x = jnp.zeros((2, 77, 3, 64), jnp.bfloat16)

    def loss(q):
        return jax.nn.dot_product_attention(q, x, x, implementation="cudnn").sum()

    with absent_gpu(HOPPER), pytest.raises(NotImplementedError, match="sequence length Q 77"):
        jax.make_jaxpr(jax.grad(loss))(x)


@pytest.mark.parametrize("name", ["ViT-test", "ViT-B-16", "ViT-B-16-SigLIP", "RN50"])
def test_a_whole_model_is_differentiated_through_it(name):
    config = ARCHITECTURES[name]
    model = CLIP(config.__class__(**vars(config) | {"dtype": "bfloat16", "remat": "attention"}))
    size, length = config.vision.image_size, config.text.context_length
    images = jnp.zeros((2, size, size, 3), jnp.uint8)
    tokens = jnp.zeros((2, length), jnp.int32)

    def loss(params, rest):
        outputs, _ = model.apply(
            {"params": params, **rest}, images, tokens, train=True, mutable=["batch_stats"]
        )
        return outputs.image.sum() + outputs.text.sum()

    with absent_gpu(HOPPER):
        variables = jax.eval_shape(model.init, jax.random.key(0), images, tokens)
        params = variables.pop("params")
        program = str(jax.make_jaxpr(jax.grad(loss))(params, variables))
    towers = 1 if name.startswith("RN") else 2
    assert program.count("dot_product_attention_bwd_wrapper[") == towers


def small(length: int, others: int, seed: int) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(seed)
    sizes = (length, others, others)
    return tuple(jnp.asarray(rng.normal(size=(2, n, 3, 8)), jnp.float32) for n in sizes)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "others"), [(5, 5), (6, 6), (5, 6), (6, 5), (1, 7)])
def test_the_added_position_changes_neither_result_nor_gradient(
    causal, length, others, monkeypatch
):
    """XLA's form of the same function stands for cuDNN's, which needs a GPU."""
    exact = jax.nn.dot_product_attention
    monkeypatch.setattr(
        module.jax.nn,
        "dot_product_attention",
        lambda *arrays, **settings: exact(*arrays, **settings | {"implementation": "xla"}),
    )
    q, k, v = small(length, others, seed=0)
    weight = small(length, others, seed=1)[0]

    def with_gradient(form):
        def loss(*arrays):
            y = form(*arrays, causal=causal)
            return (weight * y).sum(), y

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    (_, expected), expected_d = with_gradient(plain_attention)
    (_, actual), actual_d = with_gradient(module.cudnn_attention)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    for a, b in zip(actual_d, expected_d):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["plain", "cudnn"])
def test_keys_beyond_the_length_are_not_seen(causal, form, monkeypatch):
    exact = jax.nn.dot_product_attention
    monkeypatch.setattr(
        module.jax.nn,
        "dot_product_attention",
        lambda *arrays, **settings: exact(*arrays, **settings | {"implementation": "xla"}),
    )
    q, k, v = small(6, 6, seed=0)
    call = plain_attention if form == "plain" else module.cudnn_attention
    cut = plain_attention(q[:, :5], k[:, :5], v[:, :5], causal=causal)
    np.testing.assert_allclose(call(q, k, v, causal=causal, length=5)[:, :5], cut, atol=1e-6)

"""Queries' vectors are those of the model, with parameters of their own for each block or in bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.clip import create_model
from clip_jax.search.model import QueryModel, fast_model

NAMES = ("ViT-test", "RN-test")


@pytest.fixture(scope="module", params=NAMES)
def made(request):
    model = create_model(request.param)
    size, length = model.config.vision.image_size, model.config.text.context_length
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)
    tokens = np.random.default_rng(0).integers(1, 60, (3, length)).astype(np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images, tokens)
    return model, jax.device_get(variables), {"image": images, "text": tokens}


def test_vectors_are_those_of_the_model(made):
    model, variables, inputs = made
    query = QueryModel(model, variables)
    for kind, x in inputs.items():
        apply = jax.jit(model.apply, static_argnames="method")
        expected = apply(variables, x, method=f"encode_{kind}")
        np.testing.assert_allclose(query.encode(kind, x), expected, atol=2e-6)


def test_bfloat16_is_near_and_half_as_large(made):
    model, variables, inputs = made
    whole, half = QueryModel(model, variables), QueryModel(model, variables, "bfloat16")
    for kind, x in inputs.items():
        cosine = (whole.encode(kind, x) * half.encode(kind, x)).sum(axis=1)
        assert (cosine > 0.998).all() and not (cosine == 1).all()
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(one._variables)) for one in (whole, half)]
    assert sizes[1] < 0.7 * sizes[0]


def test_no_block_is_copied_out_of_a_stack(made):
    """No operation of the compiled program makes an array as large as all blocks' parameters."""
    model, variables, inputs = made
    query = QueryModel(model, variables)
    traced = query._encode.trace(query._variables, inputs["text"], method="encode_text")
    assert not traced.jaxpr.effects  # else JAX would call it through Python
    lowered = traced.lower()
    (kernel,) = (
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]["text"])
        if jax.tree_util.keystr(path, simple=True, separator="/").endswith("blocks/mlp/up/kernel")
    )
    assert kernel.ndim == 3
    stacked = "f32[" + ",".join(map(str, kernel.shape)) + "]"
    apply = jax.jit(model.apply, static_argnames="method")
    plain = apply.lower(variables, inputs["text"], method="encode_text").compile().as_text()
    text = lowered.compile().as_text()
    assert stacked in plain and stacked not in text


def test_bfloat16_rounds_the_factors_of_products_alone(made):
    """On a CPU, where what lies between the products is faster in float32, and nearer to it."""
    model, variables, inputs = made
    whole, half = QueryModel(model, variables), QueryModel(model, variables, "bfloat16")
    everywhere = create_model(dataclasses.replace(model.config, dtype="bfloat16"))
    expected = whole.encode("text", inputs["text"])
    apply = jax.jit(everywhere.apply, static_argnames="method")
    coarse = np.asarray(apply(variables, inputs["text"], method="encode_text"))
    error, coarse_error = (
        np.abs(z - expected).max() for z in (half.encode("text", inputs["text"]), coarse)
    )
    assert 0 < error < 0.9 * coarse_error
    stored = {leaf.dtype for leaf in jax.tree.leaves(half._variables)}
    assert stored == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


@pytest.mark.parametrize(
    "flags, cosine, expected",
    [
        ("fpu amx_bf16 vme", 0.99, "bfloat16"),
        ("fpu avx512_bf16", 0.99, "bfloat16"),
        ("fpu avx512f not_amx_bf16_x", 0.99, "float32"),
        ("fpu amx_bf16", 0.9999999, "float32"),
        (None, 0.99, "float32"),
    ],
)
def test_bfloat16_is_taken_where_it_is_fast_and_as_good(
    flags, cosine, expected, made, monkeypatch, tmp_path
):
    model, variables, inputs = made
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : spectre amx_bf16\n")
    monkeypatch.setattr("clip_jax.search.model.CPU_INFO", info)
    monkeypatch.setattr("clip_jax.search.model.LEAST_COSINE", cosine)
    chosen = fast_model(model, variables, inputs)
    assert chosen.dtype == expected
    same = QueryModel(model, variables, expected).encode("text", inputs["text"])
    np.testing.assert_array_equal(chosen.encode("text", inputs["text"]), same)


def test_a_model_whose_vectors_are_no_numbers_stays_as_it_is(made, monkeypatch, tmp_path):
    model, variables, inputs = made
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16\n")
    monkeypatch.setattr("clip_jax.search.model.CPU_INFO", tmp_path / "cpuinfo")
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), variables)
    assert fast_model(model, broken, inputs).dtype == "float32"
    half = model.clone(config=dataclasses.replace(model.config, dtype="bfloat16"))
    assert fast_model(half, variables, inputs).dtype == "bfloat16"


@pytest.mark.parametrize(
    "cosines, expected",
    [
        ({}, "bfloat16"),
        ({"image": [0.99995, 0.99991, 1.0], "text": [0.99992, 1.0, 0.99999]}, "bfloat16"),
        ({"image": [1.0, 0.99985, 1.0]}, "float32"),
        ({"text": [1.0, 0.99985, 1.0]}, "float32"),
        ({"text": [1.0, 1.0, np.nan]}, "float32"),
    ],
)
def test_one_vector_that_is_not_as_good_decides(cosines, expected, monkeypatch, tmp_path):
    """Of any text or picture, by itself."""
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16\n")
    monkeypatch.setattr("clip_jax.search.model.CPU_INFO", tmp_path / "cpuinfo")

    class Turned:
        """Vectors that products of bfloat16 turn by the cosines. An input is the number of its row."""

        def __init__(self, model, variables, dtype=None):
            self.dtype = dtype or "float32"

        def encode(self, kind, x):
            rows = np.ravel(x)
            cosine = np.array(cosines.get(kind, [1.0] * 3))[rows]
            if self.dtype == "float32":
                cosine = np.ones(len(rows))
            return np.stack([cosine, np.sqrt(1 - cosine**2)], axis=1).astype(np.float32)

    monkeypatch.setattr("clip_jax.search.model.QueryModel", Turned)
    inputs = {"image": np.arange(3), "text": np.arange(3)}
    assert fast_model(create_model("ViT-test"), {}, inputs).dtype == expected


def test_a_model_that_is_in_bfloat16_is_not_compared_with_itself(made, monkeypatch, tmp_path):
    model, variables, inputs = made
    (tmp_path / "cpuinfo").write_text("flags : amx_bf16\n")
    monkeypatch.setattr("clip_jax.search.model.CPU_INFO", tmp_path / "cpuinfo")
    half = model.clone(config=dataclasses.replace(model.config, dtype="bfloat16"))
    monkeypatch.setattr(QueryModel, "encode", lambda *args: pytest.fail("it was compared"))
    assert fast_model(half, variables, inputs).dtype == "bfloat16"

"""What the blocks do otherwise on a GPU: even lengths, three products, sums that are rounded at once."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.config import ModelSettings, TrainConfig
from clip_jax.hardware import traced_for
from clip_jax.models import attention as module
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import unroll_of
from clip_jax.models.layers import Transformer
from clip_jax.models.linear import Dense, SeparateQkv
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.numerics import add_bias, project_apart
from clip_jax.planning.gpu_compiler import absent_gpu
from clip_jax.planning.steps import with_unroll

HOPPER = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100", compute_capability="9.0")
KERNEL = "dot_product_attention_fwd_wrapper["


def transformer(**changes) -> Transformer:
    base = {"depth": 2, "heads": 2, "mlp_width": 32, "activation": "gelu", "norm_epsilon": 1e-5}
    base |= {"causal": True, "kind": "auto", "remat": "none", "dtype": jnp.bfloat16}
    return Transformer(**base | changes)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(transformer().init, jax.random.key(0), jnp.zeros((2, 7, 16)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, s.dtype), shapes)


def gradients(model, variables, x_BLD):
    def loss(variables, x_BLD):
        y_BLD = model.apply(variables, x_BLD)
        assert y_BLD.shape == x_BLD.shape
        return jnp.sin(y_BLD.astype(jnp.float32)).sum()

    return jax.grad(loss, argnums=(0, 1))(variables, x_BLD)


def distance(found, exact) -> float:
    """Relative, of all gradients together."""
    found, exact = (
        np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (found, exact)
    )
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [7, 8])
@pytest.mark.parametrize("remat", ["none", "attention"])
def test_blocks_for_a_gpu_compute_what_others_do(causal, length, remat, variables, monkeypatch):
    """XLA's form of the fused function stands for cuDNN's, which needs a GPU."""
    x_BLD = jnp.asarray(np.random.default_rng(1).normal(size=(2, length, 16)), jnp.bfloat16)
    exact = transformer(causal=causal, dtype=jnp.float32)
    expected = gradients(exact, variables, x_BLD.astype(jnp.float32))
    elsewhere = gradients(transformer(causal=causal), variables, x_BLD)
    fused, lengths = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, **settings):
        lengths.append((q.shape[1], k.shape[1]))
        return fused(q, k, v, **settings | {"implementation": "xla"})

    monkeypatch.setattr(module.jax.nn, "dot_product_attention", stand_in)
    with traced_for(HOPPER):
        found = gradients(transformer(causal=causal, remat=remat), variables, x_BLD)
    assert lengths and set(lengths) == {(8, 8)}
    assert distance(found, expected) < 1.5 * distance(elsewhere, expected) < 0.05


@pytest.mark.parametrize(("remat", "runs"), [("none", 1), ("attention", 1), ("full", 2)])
def test_the_softmax_s_sums_are_kept_with_the_result(remat, runs, variables):
    """So that the kernel need not run again in the backward pass."""
    x_BLD = jnp.zeros((2, 7, 16), jnp.bfloat16)
    with absent_gpu(HOPPER):
        program = jax.make_jaxpr(
            lambda variables: gradients(transformer(remat=remat), variables, x_BLD)
        )(variables)
    assert str(program).count(KERNEL) == runs


@pytest.mark.parametrize(("unroll", "pinned"), [(1, False), (2, True)])
def test_activations_outside_a_loop_are_pinned_to_their_layout(unroll, pinned, variables):
    x_BLD = jnp.zeros((2, 7, 16), jnp.bfloat16)
    with absent_gpu(HOPPER):
        program = jax.make_jaxpr(transformer(unroll=unroll).apply)(variables, x_BLD)
    assert ("layout_constraint" in str(program)) == pinned


@pytest.mark.parametrize(
    ("name", "changes", "turns"),
    [
        ("ViT-test", {}, 2),
        ("ViT-B-16", {}, 12),
        ("ViT-L-14", {}, 24),  # whose texts have 12
        ("ViT-H-14", {}, 1),  # 32
        ("RN50", {}, 12),
        ("ViT-B-16", {"unroll": 4}, 4),
        ("ViT-B-16", {"unroll": 1}, 1),
    ],
)
def test_a_gpu_unrolls_all_blocks_of_towers_that_are_not_deep(name, changes, turns):
    config = model_config(name, **changes)
    assert unroll_of(config) == changes.get("unroll", 1)  # on a CPU
    with traced_for(HOPPER):
        assert unroll_of(config) == turns
        assert (
            with_unroll(TrainConfig(model=ModelSettings(name=name, **changes)), HOPPER).model.unroll
            == turns
        )


def test_towers_without_blocks_have_nothing_to_unroll():
    config = SimpleNamespace(unroll=None, towers={"image": ResNetConfig(), "text": ResNetConfig()})
    with traced_for(HOPPER):
        assert unroll_of(config) == 1


def test_separate_queries_keys_and_values_are_columns_without_two_of_the_biases():
    rng = np.random.default_rng(0)
    x_BD = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    whole, parts = Dense(18, 1.0, jnp.float32), SeparateQkv(1.0, jnp.float32)
    variables = whole.init(jax.random.key(0), x_BD)
    jax.tree.map(np.testing.assert_array_equal, parts.init(jax.random.key(0), x_BD), variables)
    variables["params"]["bias"] = jnp.asarray(rng.normal(size=18), jnp.float32)
    (q_BD, k_BD, v_BD), shift_D = parts.apply(variables, x_BD)
    biases = variables["params"]["bias"].reshape(3, 1, 6)
    found = jnp.concatenate([q_BD, k_BD + biases[1], v_BD + biases[2]], axis=1)
    np.testing.assert_allclose(found, whole.apply(variables, x_BD), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shift_D, biases[2, 0])


def test_a_shift_of_a_layer_s_input_is_part_of_its_bias():
    x_BD, shift_D = jnp.ones((4, 6)), jnp.arange(6.0)
    layer = Dense(9, 1.0, jnp.float32)
    variables = layer.init(jax.random.key(0), x_BD)
    expected = layer.apply(variables, x_BD + shift_D[None])
    np.testing.assert_allclose(layer.apply(variables, x_BD, shift_D), expected, rtol=1e-5)


def test_a_bias_is_added_to_the_rounded_sums_without_a_second_rounding():
    rng = np.random.default_rng(0)
    x_BD = jnp.asarray(rng.normal(size=(4, 6)), jnp.bfloat16)
    kernel_DF, bias_F = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((6, 9), 9))
    given_BF = jnp.asarray(rng.normal(size=(4, 9)), jnp.float32)
    once_BF, none = project_apart(x_BD, kernel_DF, bias_F)
    assert none is None and add_bias(once_BF, none) is once_BF
    with traced_for(HOPPER):
        y_BF, bias = project_apart(x_BD, kernel_DF, bias_F)
        z_BF, vjp = jax.vjp(add_bias, y_BF, bias)
        dy_BF, d_bias_F = vjp(given_BF)
    assert (y_BF.dtype, z_BF.dtype, dy_BF.dtype) == (jnp.bfloat16, jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(z_BF, y_BF.astype(jnp.float32) + bias_F[None])
    np.testing.assert_array_equal(dy_BF, given_BF.astype(jnp.bfloat16))
    np.testing.assert_allclose(d_bias_F, dy_BF.astype(jnp.float32).sum(axis=0), rtol=1e-6)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_activations_are_kept_in_16_bits(remat, variables):
    x_BLD = jnp.zeros((2, 7, 16), jnp.bfloat16)
    with absent_gpu(HOPPER):
        apply = transformer(remat=remat).apply
        kept = jax.eval_shape(lambda v: jax.vjp(lambda v: apply(v, x_BLD), v)[1], variables)
    stacks = [leaf for leaf in jax.tree.leaves(kept) if leaf.shape[:3] == (2, 2, 8)]
    wide = [leaf.shape for leaf in stacks if leaf.dtype.itemsize > 2 and leaf.shape[-1] > 2]
    assert stacks and not wide


def test_sums_in_float32_are_rounded_before_the_bias_is_added_only_there():
    x = jnp.zeros((4, 6), jnp.bfloat16)
    layer = Dense(9, 1.0, jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)

    def product() -> str:
        lines = jax.jit(layer.apply).lower(variables, x).as_text().splitlines()
        (found,) = (line for line in lines if "dot_general" in line)
        return found.rsplit("->", 1)[1]

    with traced_for(HOPPER):
        assert "4x9xbf16" in product()
    jax.clear_caches()
    assert "4x9xf32" in product()

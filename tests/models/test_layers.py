"""The transformer that both towers share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.layers import ACTIVATIONS, REMAT_POLICIES, Transformer
from clip_jax.models.normalization import LayerNorm, normalize


def transformer(**changes) -> Transformer:
    base = {"depth": 3, "heads": 2, "mlp_width": 32, "activation": "gelu", "norm_epsilon": 1e-5}
    base |= {"causal": True, "kind": "plain", "remat": "none", "dtype": jnp.float32}
    return Transformer(**base | changes)


@pytest.fixture(scope="module")
def x_BLD():
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 16)), jnp.float32)


def drawn(x_BLD):
    """Variables of that transformer."""
    shapes = jax.eval_shape(transformer().init, jax.random.key(0), x_BLD)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 4, s.dtype), shapes)


@pytest.fixture(scope="module")
def variables(x_BLD):
    return drawn(x_BLD)


def loss_and_gradients(model, variables, x_BLD):
    def loss(variables):
        return jnp.sin(model.apply(variables, x_BLD)).sum()

    program = jax.jit(jax.value_and_grad(loss)).lower(variables)
    return program, program.compile()(variables)


@pytest.fixture(scope="module")
def expected(variables, x_BLD):
    return loss_and_gradients(transformer(), variables, x_BLD)[1]


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected
    )


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_what_is_kept_for_the_backward_pass_changes_no_number(remat, variables, x_BLD, expected):
    _, found = loss_and_gradients(transformer(remat=remat), variables, x_BLD)
    assert_close(found, expected)


def test_policies_recompute_more_the_less_they_keep(variables, x_BLD):
    def products(remat: str) -> int:
        model = transformer(remat=remat)
        loss = lambda v: model.apply(v, x_BLD).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(variables)).count("dot_general")

    counts = [products(remat) for remat in ("none", "dots", "attention", "full")]
    assert counts[0] < counts[1] < counts[2] < counts[3]


def test_unrolling_changes_no_number(variables, x_BLD, expected):
    program, found = loss_and_gradients(transformer(unroll=2), variables, x_BLD)
    assert_close(found, expected)
    assert "stablehlo.while" in program.as_text()
    program, _ = loss_and_gradients(transformer(unroll=3), variables, x_BLD)
    assert "stablehlo.while" not in program.as_text()
    more_than_there_are = transformer(unroll=99)
    assert jax.eval_shape(more_than_there_are.apply, variables, x_BLD).shape == x_BLD.shape


@pytest.mark.parametrize("unroll", [2, 3])
def test_unrolled_blocks_are_rematerialised_all_the_same(unroll, variables, x_BLD):
    """Outside a loop XLA would merge what is computed again with what was computed before."""

    def flops(**changes) -> float:
        program, _ = loss_and_gradients(transformer(unroll=unroll, **changes), variables, x_BLD)
        return program.compile().cost_analysis()["flops"]

    assert flops(remat="full") > 1.2 * flops(remat="none")


@pytest.mark.parametrize(
    ("depth", "unroll", "barrier"),
    [(5, 1, False), (5, 2, True), (4, 2, False), (4, 4, True), (6, 4, True)],
)
def test_blocks_outside_a_loop_have_a_barrier_before_they_are_computed_again(
    depth, unroll, barrier, x_BLD
):
    """Those that are left over by the turns too; inside a loop it would cost a copy."""
    model = transformer(depth=depth, unroll=unroll, remat="full")
    shapes = jax.eval_shape(model.init, jax.random.key(0), x_BLD)
    program = str(jax.make_jaxpr(model.apply)(shapes, x_BLD))
    assert ("prevent_cse=True" in program) == barrier


def test_blocks_are_stacked_so_that_the_program_does_not_grow_with_depth(x_BLD):
    texts = []
    for depth in (3, 12):
        model = transformer(depth=depth)
        shapes = jax.eval_shape(model.init, jax.random.key(0), x_BLD)
        assert all(leaf.shape[0] == depth for leaf in jax.tree.leaves(shapes))
        texts.append(jax.jit(model.apply).lower(shapes, x_BLD).as_text())
    assert len(texts[0].splitlines()) == len(texts[1].splitlines())


@pytest.mark.parametrize("remat", ["none", "full"])
def test_locked_blocks_come_first_and_get_no_gradient(variables, x_BLD, expected, remat):
    blocks = variables["params"]["blocks"]
    locked, rest = jax.tree.map(lambda x: x[:1], blocks), jax.tree.map(lambda x: x[1:], blocks)
    apart = {"params": {"locked_blocks": locked, "blocks": rest}}
    _, (loss, gradients) = loss_and_gradients(transformer(remat=remat), apart, x_BLD)
    assert_close(loss, expected[0])
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients["params"]["locked_blocks"]))
    whole = jax.tree.map(lambda x: x[1:], expected[1]["params"]["blocks"])
    assert_close(gradients["params"]["blocks"], whole)


def test_causal_blocks_cannot_see_the_future(variables, x_BLD):
    apply = jax.jit(lambda x_BLD: transformer().apply(variables, x_BLD))
    before, after = apply(x_BLD), apply(x_BLD.at[:, 4].add(1.0))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_policies_keep_what_cudnns_kernel_computes_so_that_it_runs_once():
    class Kernel:
        name = "dot_product_attention_fwd_wrapper"

    kept = {remat for remat, policy in REMAT_POLICIES.items() if policy(Kernel)}
    assert kept == {"attention", "dots"}


def test_a_layer_norm_computes_in_float32_whatever_the_tower_does():
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(300, 1, (2, 3, 64)), jnp.bfloat16)
    norm = LayerNorm(1e-5, jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x_BLD)
    exact = np.asarray(x_BLD, np.float64)
    exact = exact - exact.mean(axis=-1, keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(axis=-1, keepdims=True) + 1e-5)
    y_BLD = norm.apply(variables, x_BLD)
    assert y_BLD.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y_BLD, np.float64), exact, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
def test_the_gradient_of_a_layer_norm_is_that_of_its_formula(dtype, error):
    rng = np.random.default_rng(0)
    x_BLD, dy_BLD = (3 + 2 * rng.normal(size=(2, 5, 32)) for _ in range(2))
    scale_D, bias_D = rng.normal(size=(2, 32))

    def formula(x_BLD, scale_D, bias_D):
        centred_BLD = x_BLD - x_BLD.mean(-1, keepdims=True)
        inverse_BL1 = 1 / jnp.sqrt(jnp.square(centred_BLD).mean(-1, keepdims=True) + 1e-5)
        return centred_BLD * inverse_BL1 * scale_D[None, None] + bias_D[None, None]

    def gradients(form, x_BLD):
        arguments = x_BLD, jnp.float32(scale_D), jnp.float32(bias_D)
        y_BLD, vjp = jax.vjp(form, *arguments)
        return vjp(jnp.asarray(dy_BLD, y_BLD.dtype))

    def ours(*arguments):
        return normalize(*arguments, 1e-5, dtype)

    rounded = jnp.asarray(x_BLD, dtype)
    expected = gradients(formula, rounded.astype(jnp.float32))
    for found, exact in zip(gradients(ours, rounded), expected, strict=True):
        assert np.linalg.norm(np.float32(found) - exact) < error * np.linalg.norm(exact)


def test_activations_are_what_their_names_say():
    x = np.linspace(-3, 3, 13, dtype=np.float32)
    exact = np.array([value * (1 + math.erf(value / 2**0.5)) / 2 for value in x])
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["gelu_tanh"](x), exact, atol=1e-3)
    np.testing.assert_allclose(
        ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), atol=1e-6
    )
    assert abs(ACTIVATIONS["quick_gelu"](x) - exact).max() > 1e-3


def test_every_block_calls_the_constraint_on_its_input(variables, x_BLD):
    shapes = []

    def constrain(x):
        shapes.append(x.shape)
        return x

    jax.eval_shape(transformer(constrain=constrain).apply, variables, x_BLD)
    assert len(shapes) >= 2 and set(shapes) == {x_BLD.shape}

"""The last block where one position alone is read: the same numbers, for the keys' and values' price."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.hardware import traced_for
from clip_jax.models import attention, layers
from clip_jax.models.attention import plain_attention
from clip_jax.models.clip import create_model, init_variables
from clip_jax.models.reading import at, leave_last
from clip_jax.sharding import constrain_batch
from tests.models import test_layers
from tests.models.test_gpu_blocks import HOPPER, distance

READ = {"first": 0, "last": 5, "of each": jnp.asarray([4, 1, 5])}


def transformer(**changes) -> layers.Transformer:
    return test_layers.transformer(**{"unroll": 3} | changes)


@pytest.fixture(scope="module")
def x_BLD():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 16)), jnp.float32)


@pytest.fixture(scope="module")
def variables(x_BLD):
    return test_layers.drawn(x_BLD)


def read_after(model, variables, x_BLD, read):
    """All positions of all blocks, of which one is read: what it must equal."""
    return at(model.apply(variables, x_BLD), read)


def read_alone(model, variables, x_BLD, read):
    return model.apply(variables, x_BLD, read)[1]


def gradients(how, *args, **changes):
    def loss(variables, x_BLD, read):
        y_BD = how(transformer(**changes), variables, x_BLD, read)
        assert y_BD.shape == (x_BLD.shape[0], x_BLD.shape[2])
        return jnp.sin(y_BD.astype(jnp.float32)).sum()

    return jax.value_and_grad(loss, argnums=(0, 1))(*args)


@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize(
    "changes",
    [{}, {"causal": False}, {"remat": "full"}, {"remat": "attention", "causal": False}],
    ids=str,
)
def test_it_equals_reading_the_last_block_s_result(changes, read, variables, x_BLD):
    found = gradients(read_alone, variables, x_BLD, read, **changes)
    exact = gradients(read_after, variables, x_BLD, read, **changes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, exact)


@pytest.mark.parametrize("locked", [1, 2])
def test_the_last_one_of_blocks_that_train_is_left_out(locked, variables, x_BLD):
    blocks = variables["params"]["blocks"]
    apart = {
        "locked_blocks": jax.tree.map(lambda x: x[:locked], blocks),
        "blocks": jax.tree.map(lambda x: x[locked:], blocks),
    }
    args = {"params": apart}, x_BLD, READ["of each"]
    found, exact = (gradients(how, *args) for how in (read_alone, read_after))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, exact)


def test_blocks_of_other_positions_are_still_there_for_those_who_use_them(variables, x_BLD):
    alone = transformer().apply(variables, x_BLD)
    both, read_BD = transformer().apply(variables, x_BLD, 2)
    np.testing.assert_allclose(both, alone, atol=1e-5)
    np.testing.assert_allclose(read_BD, alone[:, 2], atol=1e-5)


@pytest.mark.parametrize("rows", [10**6, 0])
def test_a_loop_leaves_the_last_block_out_where_there_are_many_rows(
    rows, variables, x_BLD, monkeypatch
):
    monkeypatch.setattr(layers, "ROWS_TO_LEAVE_LAST", rows)
    args = variables, x_BLD, READ["of each"]
    found = gradients(read_alone, *args, unroll=1)
    exact = gradients(read_after, *args, unroll=1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, exact)
    program = str(jax.make_jaxpr(lambda *args: read_alone(transformer(unroll=1), *args))(*args))
    assert f"length={3 if rows else 2}" in program


def test_a_model_s_step_does_not_compute_what_is_not_read():
    """Of the last of two blocks, 10 of 12 shares of the products are for positions that nobody reads."""
    flops = {}
    for unroll in (2, 1):  # in a loop of so few rows the last block stays
        model = create_model("ViT-test", unroll=unroll)
        variables = jax.eval_shape(
            lambda key, model=model: init_variables(model, key), jax.random.key(0)
        )
        size = model.config.vision.image_size
        inputs = (
            jax.ShapeDtypeStruct((4, size, size, 3), jnp.uint8),
            jax.ShapeDtypeStruct((4, model.config.text.context_length), jnp.int32),
        )

        def loss(params, images, tokens, model=model):
            outputs = model.apply({"params": params}, images, tokens)
            return (outputs.image * outputs.text).sum()

        program = jax.jit(jax.grad(loss)).lower(variables["params"], *inputs).compile()
        flops[unroll] = program.cost_analysis()["flops"]
    # XLA counts one turn of a loop, which is half of this model.
    assert flops[2] < 2 * 0.75 * flops[1]


def test_what_comes_later_is_not_seen(variables, x_BLD):
    read = READ["of each"]
    later_BL1 = (jnp.arange(6)[None] > read[:, None])[:, :, None]
    changed_BLD = jnp.where(later_BL1, x_BLD[::-1], x_BLD)

    def difference(**changes):
        before, after = (
            read_alone(transformer(**changes), variables, each_BLD, read)
            for each_BLD in (x_BLD, changed_BLD)
        )
        return jnp.abs(before - after).max()

    assert difference() == 0
    assert difference(causal=False) > 0.01


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("read", [0, 4, jnp.asarray([4, 1, 3])], ids=["first", "last", "of each"])
def test_the_position_that_a_gpu_adds_is_not_seen(causal, read, variables, x_BLD, monkeypatch):
    """Odd lengths become even there. XLA's form of the fused function stands for cuDNN's."""
    x_BLD = x_BLD[:, :5]
    args = variables, x_BLD, read
    exact = gradients(read_after, *args, causal=causal)[1]
    elsewhere = gradients(read_alone, *args, causal=causal, dtype=jnp.bfloat16)[1]
    fused = jax.nn.dot_product_attention
    monkeypatch.setattr(
        attention.jax.nn,
        "dot_product_attention",
        lambda *qkv, **settings: fused(*qkv, **settings | {"implementation": "xla"}),
    )
    with traced_for(HOPPER):
        found = gradients(read_alone, *args, causal=causal, kind="auto", dtype=jnp.bfloat16)[1]
    assert distance(found, exact) < 1.5 * distance(elsewhere, exact) < 0.05


@pytest.mark.parametrize(
    ("read", "same"),
    [(-1, 5), (-6, 0), (np.int64(2), 2), (jnp.int32(3), 3), (np.asarray([4, -1, 0]), [4, 5, 0])],
    ids=str,
)
def test_positions_are_counted_as_in_an_index(read, same, variables, x_BLD):
    found = read_alone(transformer(), variables, x_BLD, read)
    exact = read_after(transformer(), variables, x_BLD, jnp.broadcast_to(jnp.asarray(same), (3,)))
    np.testing.assert_allclose(found, exact, atol=1e-5)


@pytest.mark.parametrize("read", [6, -7])
def test_a_position_that_no_sequence_has_is_refused(read, variables, x_BLD):
    with pytest.raises(ValueError, match=f"position {read} cannot be read of 6.*0 to 5"):
        transformer().apply(variables, x_BLD, read)


@pytest.mark.parametrize("unroll", [1, 3])
def test_lengths_may_be_symbols(unroll, variables, x_BLD):
    model = transformer(unroll=unroll)
    shape = jax.export.symbolic_shape("b, l, 16", constraints=("l >= 1",))
    read_last = jax.jit(lambda x_BLD: model.apply(variables, x_BLD, x_BLD.shape[1] - 1)[1])
    exported = jax.export.export(read_last)(jax.ShapeDtypeStruct(shape, jnp.float32))
    np.testing.assert_allclose(
        exported.call(x_BLD), read_after(model, variables, x_BLD, 5), atol=1e-5
    )


def test_the_last_block_is_rematerialised_too(x_BLD):
    def products(remat: str) -> int:
        model = transformer(depth=1, remat=remat)
        shapes = jax.eval_shape(model.init, jax.random.key(0), x_BLD)
        loss = lambda v: read_alone(model, v, x_BLD, 2).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(shapes)).count("dot_general[")

    assert products("none") < products("full")


def test_both_results_are_split_as_the_batch_is(variables, x_BLD):
    seen = []

    def constrain(x):
        seen.append(x.shape)
        return x

    jax.eval_shape(transformer(constrain=constrain).apply, variables, x_BLD, 2)
    assert seen[-2:] == [(3, 6, 16), (3, 16)]


def test_rows_are_those_of_a_device(variables, mesh, monkeypatch):
    monkeypatch.setattr(layers, "ROWS_TO_LEAVE_LAST", 12)
    x_BLD = jnp.zeros((16, 6, 16))
    for devices, blocks in ((1, 2), (8, 2), (2, 2)):
        model = transformer(unroll=1, constrain=constrain_batch(mesh(devices)))
        program = str(jax.make_jaxpr(lambda v, m=model: read_alone(m, v, x_BLD, 0))(variables))
        assert f"length={blocks}" in program
    monkeypatch.setattr(layers, "ROWS_TO_LEAVE_LAST", 13)
    model = transformer(unroll=1, constrain=constrain_batch(mesh(8)))
    program = str(jax.make_jaxpr(lambda v: read_alone(model, v, x_BLD, 0))(variables))
    assert "length=3" in program


def test_keys_may_end_at_another_place_in_each_sequence():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 3, 4)), jnp.float32) for n in (1, 5, 5))
    found = plain_attention(q, k, v, causal=False, length=jnp.asarray([2, 5]))
    for row, length in enumerate((2, 5)):
        own = slice(row, row + 1)
        cut = plain_attention(q[own], k[own, :length], v[own, :length], causal=False)
        np.testing.assert_allclose(found[own], cut, atol=1e-6)


def test_gradients_of_a_stack_are_put_together_in_order():
    stack = {"a": jnp.arange(6.0).reshape(3, 2)}
    (first, last), pull = jax.vjp(leave_last, stack)
    np.testing.assert_array_equal(first["a"], stack["a"][:2])
    np.testing.assert_array_equal(last["a"], stack["a"][2])
    (back,) = pull((first, last))
    np.testing.assert_array_equal(back["a"], stack["a"])
    program = jax.jit(lambda *args: pull(args)).lower(first, last).as_text()
    assert "concatenate" in program and "stablehlo.pad" not in program

"""An update that is computed twice, on one CPU, is the one that is computed once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import HealthConfig, OptimizerConfig
from clip_jax.models.clip import create_model
from clip_jax.training import updates
from clip_jax.training.optimizer import make_optimizer

PARAMS = {
    "image": {"blocks": {"kernel": (3, 8, 16), "bias": (3, 16)}, "projection": {"kernel": (8, 5)}},
    "logit_scale": (),
}


def drawn(seed: int):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), PARAMS, is_leaf=is_shape
    )


def is_made_twice(mesh, optimizer: optax.GradientTransformation) -> bool:
    params = drawn(0)
    state = optimizer.init(params)
    return updates.is_made_twice(lambda: optimizer.update(drawn(1), state, params), mesh)


@pytest.mark.parametrize(
    ("name", "twice"),
    [
        ("adamw", True),
        ("lion", True),
        ("adafactor", True),
        ("sgd", True),
        ("lamb", True),
        ("muon", False),
    ],
)
def test_updates_are_computed_twice_where_they_cost_less_than_memory(name, twice, mesh):
    cfg = OptimizerConfig(name=name, warmup_steps=2)
    assert is_made_twice(mesh(1), make_optimizer(cfg, 20)) == twice
    assert not is_made_twice(mesh(8), make_optimizer(cfg, 20))


def convolved(x):
    return jax.lax.conv(x[None, None], x[None, None], (1, 1), "SAME")


@pytest.mark.parametrize(
    "function",
    [
        jnp.linalg.qr,
        jnp.linalg.svd,
        jnp.linalg.cholesky,
        jnp.linalg.eigh,
        jnp.linalg.det,
        jnp.dot(np.eye(8), np.eye(8)).__matmul__,
        convolved,
        jnp.sort,
        jnp.fft.fft,
    ],
)
def test_products_factorisations_and_sorts_are_computed_once(function, mesh):
    def update(grads, state, params=None):
        found = [jnp.abs(part).sum() for part in jax.tree.leaves(function(jnp.eye(8)))]
        return jax.tree.map(lambda g: g * found[0], grads), state

    optimizer = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    assert not is_made_twice(mesh(1), optimizer)


def test_what_calls_the_host_is_computed_once(mesh):
    def update(grads, state, params=None):
        jax.debug.callback(lambda x: None, grads["logit_scale"])
        return grads, state

    def pure(grads, state, params=None):
        size = jax.ShapeDtypeStruct((), jnp.float32)
        factor = jax.pure_callback(lambda x: x, size, grads["logit_scale"])
        return jax.tree.map(lambda g: g * factor, grads), state

    for each in (update, pure):
        optimizer = optax.GradientTransformation(lambda params: optax.EmptyState(), each)
        assert not is_made_twice(mesh(1), optimizer)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (3,), (8,), (3, 5), (16, 7, 3)])
def test_the_norm_in_passing_is_the_norm(shape, dtype):
    rng = np.random.default_rng(0)
    tree = [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3)]
    exact = np.sqrt(sum(np.square(np.float64(x)).sum() for x in tree))
    for in_passing in (True, False):
        found = updates.norm_of(tree, in_passing=in_passing)
        np.testing.assert_allclose(
            np.float64(found), exact, rtol=1e-6 if dtype == jnp.float32 else 0.02
        )


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_the_norm_in_passing_is_not_finite_where_a_number_is_not(value):
    tree = [jnp.ones((4, 4)), jnp.ones((4, 4)).at[3, 1].set(value)]
    assert not np.isfinite(updates.norm_of(tree, in_passing=True))


@pytest.fixture(scope="module")
def both(compiled):
    """The steps of a run whose update is computed twice, and of one in which it is computed once."""
    on = jax.make_mesh(
        (1, 1), ("data", "fsdp"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    settings = {
        "optimizer": OptimizerConfig(
            learning_rate=1e-2, warmup_steps=2, ema_decay=0.75, ema_warmup=False, clip_norm=1.0
        ),
        "health": HealthConfig(spike_factor=10.0, spike_warmup_steps=3),
    }
    twice = compiled(on, create_model("ViT-test"), **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "is_made_twice", lambda *_: False)
        once = compiled(on, create_model("ViT-test"), **settings)
    return on, twice, once


def test_the_state_after_three_steps_is_the_same(both, batch):
    on, *runs = both
    found = []
    for run in runs:
        state = run.state()
        for step in range(3):
            state, metrics = run.step(state, batch(on, step))
        found.append(jax.device_get((state, metrics["update_norm"])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *found)


def test_the_new_state_takes_the_old_one_s_memory(both):
    """No array of the state is copied, and none of an update is kept until its norm is known."""
    _, twice, once = both
    text = twice.step.as_text()
    leaves = jax.tree.leaves(twice.first)
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry", text)[1]
    assert aliases.count("alias") == len(leaves)
    sizes = {x.shape for x in leaves if np.prod(np.shape(x)) > 1000}
    assert sizes
    for shape in sizes:
        # A loop's stacks of gradients are copies of a broadcast zero.
        copied = rf"= f32\[{','.join(map(str, shape))}\]\S* copy\(%(?!broadcast)"
        assert not re.search(copied, text), shape
    temporary = [run.step.memory_analysis().temp_size_in_bytes for run in (twice, once)]
    assert temporary[0] <= temporary[1]

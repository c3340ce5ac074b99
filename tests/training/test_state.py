"""The state of a run: what is in it, what is not, and that every mesh begins alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.config import DataConfig, ModelSettings, OptimizerConfig, TrainConfig
from clip_jax.models.clip import create_model
from clip_jax.training.optimizer import DIRECTIONS, make_optimizer
from clip_jax.training.state import (
    abstract_state,
    check_batch_statistics,
    new_state,
    sharded_new_state,
)


@pytest.fixture(scope="module")
def model():
    return create_model("ViT-test")


def optimizer(name: str = "adamw"):
    return make_optimizer(OptimizerConfig(name=name, warmup_steps=0), 10)


def names(tree) -> set[str]:
    return {sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_costs_no_memory_but_its_own(model, tower, name):
    arguments = {"model": model, "optimizer": optimizer(name), "ema": True}
    state = jax.eval_shape(
        lambda: new_state(jax.random.key(0), **arguments, freeze=tower),
    )
    assert state.frozen.keys() == {tower}
    for part in (state.params, state.opt_state, state.ema):
        assert not [leaf for leaf in names(part) if tower in leaf.split("/")]
    whole = jax.eval_shape(lambda: new_state(jax.random.key(0), **arguments))
    assert jax.tree.structure(state.variables) == jax.tree.structure(whole.variables)
    assert jax.tree.structure(state.ema_variables) == jax.tree.structure(whole.variables)


def test_the_average_begins_at_the_parameters_and_is_no_alias_of_them(model, draw):
    variables = jax.tree.map(jnp.asarray, draw(model))
    state = new_state(
        jax.random.key(0), model=model, optimizer=optimizer(), ema=True, variables=variables
    )
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.params)
    pairs = zip(jax.tree.leaves(state.ema), jax.tree.leaves(state.params), strict=True)
    for average, param in pairs:  # a donated buffer cannot be given twice
        assert average.unsafe_buffer_pointer() != param.unsafe_buffer_pointer()
    assert state.step == state.health.skipped == state.health.counted == 0


def test_batch_statistics_are_variables_but_not_trained():
    model = create_model("RN-test")
    state = jax.eval_shape(lambda: new_state(jax.random.key(0), model=model, optimizer=optimizer()))
    assert state.variables.keys() == {"params", "batch_stats"}
    assert not [name for name in names((state.params, state.opt_state)) if name.endswith("/var")]


def test_a_mesh_changes_where_a_state_lies_and_not_one_bit_of_it(mesh, fragile):
    arguments = {"model": fragile, "optimizer": optimizer()}
    shapes = [abstract_state(mesh(*shape), **arguments) for shape in ((1, 1), (2, 4))]
    states = [sharded_new_state(abstract, 3, **arguments) for abstract in shapes]
    one, split = states
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(split))
    other = sharded_new_state(shapes[0], 4, **arguments)
    kernel = lambda state: np.asarray(state.params["image"]["projection"]["kernel"])  # noqa: E731
    assert not np.allclose(kernel(one), kernel(other))
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding),
        shapes[1],
        split,
    )
    assert all(jax.tree.leaves(same))


def test_moments_lie_where_their_parameters_do(mesh, model):
    state = abstract_state(mesh(2, 4), model=model, optimizer=optimizer(), ema=True)
    places = {
        sharding.path_name(path): leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    split = {name: place for name, place in places.items() if "fsdp" in place.spec}
    kernels = [name for name in split if name.endswith("image/transformer/blocks/mlp/up/kernel")]
    assert len(kernels) == 4  # the parameter, its two moments and its average
    assert len({split[name] for name in kernels}) == 1


def test_micro_batches_of_a_resnet_are_refused_unless_their_own_statistics_are_accepted():
    """Their gradient would not be that of the whole batch, without a word."""

    @functools.cache
    def state_of(name: str, freeze: str):
        model = create_model(name)
        return jax.eval_shape(
            lambda: new_state(jax.random.key(0), model=model, optimizer=optimizer(), freeze=freeze)
        )

    def check(name: str, parts: int, ghost: bool, freeze: str = "none"):
        settings = ModelSettings(name=name, freeze=freeze, ghost_batch_norm=ghost)
        cfg = TrainConfig(model=settings, data=DataConfig(accumulation=parts))
        check_batch_statistics(cfg, state_of(name, freeze))

    for taken in (
        *(("RN-test", 1, False), ("RN-test", 2, True), ("ViT-test", 2, False)),
        ("RN-test", 2, False, "image"),
    ):
        check(*taken)
    with pytest.raises(ValueError, match=r"data.accumulation=2 .* image tower of RN-test"):
        check("RN-test", 2, False)
    with pytest.raises(ValueError, match=r"data.accumulation=2"):
        check("RN-test", 2, False, "text")
    for unused in (("RN-test", 1), ("ViT-test", 2)):
        with pytest.raises(ValueError, match=r"ghost_batch_norm=True has no effect"):
            check(*unused, True)

"""Checkpoints whose attention kernels have axes for heads resume a run with flat ones."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import sharding
from clip_jax.config import CheckpointConfig, OptimizerConfig
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.old_layouts import flat_shape
from clip_jax.runs.trained_variables import read_variables
from clip_jax.training.optimizer import DIRECTIONS, make_optimizer
from clip_jax.training.state import Health, TrainState

CFG = CheckpointConfig(every_steps=1, every_minutes=None)
N, K = 2, 64
D = N * K  # wide enough for Adafactor to keep the means of rows and columns of a flat kernel
SHAPES = {  # as they were, and as they are
    "transformer/blocks/attention/qkv/kernel": ((2, D, 3, N, K), (2, D, 3 * D)),
    "transformer/blocks/attention/qkv/bias": ((2, 3, N, K), (2, 3 * D)),
    "transformer/blocks/attention/out/kernel": ((2, N, K, D), (2, D, D)),
    "transformer/blocks/attention/out/bias": ((2, D), (2, D)),
    "transformer/blocks/mlp/up/kernel": ((2, D, 8), (2, D, 8)),
    "pool/query/kernel": ((D, N, K), (D, D)),
    "pool/query/bias": ((N, K), (D,)),
    "pool/key_value/kernel": ((D, 2, N, K), (D, 2 * D)),
    "pool/key_value/bias": ((2, N, K), (2 * D,)),
    "pool/out/kernel": ((N, K, D), (D, D)),
    "pool/out/bias": ((D,), (D,)),
}
WAS, IS = 0, 1


def tower(layout: int, seed: int) -> dict:
    """Random arrays; the same numbers in both layouts."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: jnp.asarray(rng.normal(size=shapes[WAS]), jnp.float32).reshape(shapes[layout])
        for name, shapes in SHAPES.items()
    }
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def as_it_was(path, leaf):
    """A parameter's moment in the old layout."""
    _, _, name = sharding.path_name(path).partition("/image/")
    return leaf.reshape(SHAPES[name][WAS]) if name in SHAPES else leaf


def state_after_one_update(rule: str, layout: int) -> TrainState:
    optimizer = make_optimizer(OptimizerConfig(name=rule, warmup_steps=0), 10)
    params, gradients = {"image": tower(layout, 0)}, {"image": tower(layout, 1)}
    opt_state = optimizer.update(gradients, optimizer.init(params), params)[1]
    if rule == "muon" and layout == WAS:  # which gives kernels with axes for heads to Adam today
        opt_state = jax.tree_util.tree_map_with_path(
            as_it_was, state_after_one_update(rule, IS).opt_state
        )
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        frozen={"text": tower(layout, 2)},
        batch_stats={},
        opt_state=opt_state,
        ema={"image": tower(layout, 3)},
        ema_batch_stats={},
        health=Health(zero, zero, jnp.zeros(()), zero),
    )


def save(directory, state: TrainState):
    with Checkpoints(directory, CFG) as checkpoints:
        checkpoints.save(1, state, metadata={}, force=True)


def restore(directory, mesh, state: TrainState) -> TrainState:
    abstract = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        state,
        sharding.shardings(mesh, state),
    )
    with Checkpoints(directory, CFG) as checkpoints:
        restored = checkpoints.restore(abstract).state
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    return restored


@pytest.mark.parametrize("rule", DIRECTIONS)
def test_parameters_moments_and_average_become_what_the_flat_layout_has(tmp_path, mesh, rule):
    old, flat = (state_after_one_update(rule, layout) for layout in (WAS, IS))
    save(tmp_path, old)
    restored = restore(tmp_path, mesh(1, 2), flat)
    assert jax.tree.structure(restored) == jax.tree.structure(flat)
    kept = dict(_named(old))
    for name, leaf in _named(restored):
        expected = kept[name]
        if "/v" in name:  # Adafactor's means, which the old layout did not have
            expected = dict(_named(flat))[name]
        np.testing.assert_allclose(leaf, np.reshape(expected, leaf.shape), rtol=1e-5, err_msg=name)


def test_variables_are_read_flat_and_bit_for_bit(tmp_path):
    save(tmp_path, state_after_one_update("adamw", WAS))
    variables, _ = read_variables(tmp_path)
    expected = {"params": {"image": tower(IS, 3), "text": tower(IS, 2)}}
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_another_model_is_refused_as_before(tmp_path, mesh):
    old, flat = (state_after_one_update("adamw", layout) for layout in (WAS, IS))
    qkv = old.params["image"]["transformer"]["blocks"]["attention"]["qkv"]
    qkv["kernel"] = jnp.zeros((2, D, 3, 1, K))
    save(tmp_path, old)
    with pytest.raises(ValueError, match=r"another model.*qkv/kernel: saved float32\[2, 128, 3, 1"):
        restore(tmp_path, mesh(1, 2), flat)


@pytest.mark.parametrize("name", SHAPES)
def test_flat_shapes_stay_as_they_are(name):
    was, now = SHAPES[name]
    assert flat_shape(f"params/image/{name}", was) == now == flat_shape(f"ema/image/{name}", now)


def _named(tree) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(sharding.path_name(path), leaf) for path, leaf in leaves]

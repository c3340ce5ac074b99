"""Training a frozen tower's last blocks: its gradients, its steps, its checkpoints."""

import jax
import numpy as np
import optax
import pytest

from clip_jax.config import CheckpointConfig, LossConfig, ModelSettings, OptimizerConfig
from clip_jax.losses.objective import make_objective
from clip_jax.models.clip import create_model
from clip_jax.models.freezing import join_blocks, split
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.trained_variables import read_variables
from clip_jax.sharding import path_name
from clip_jax.training.gradients import batch_gradients
from clip_jax.training.state import new_state

SETTINGS = ModelSettings(name="ViT-test", freeze="image", unlocked_blocks=1)


def names(tree) -> set[str]:
    return {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.fixture(scope="module")
def model():
    return create_model("ViT-test")


@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_is_the_whole_ones_of_what_trains(model, draw, batch, mesh, parts):
    on, key = mesh(1), jax.random.key(0)
    objective = make_objective(LossConfig())
    common = {"model": model, "optimizer": optax.identity(), "variables": draw(model)}
    states = [new_state(key, freeze="image", unlocked_blocks=1, **common), new_state(key, **common)]

    @jax.jit
    def gradients(state, batch):
        found = batch_gradients(
            state, batch, key, model=model, objective=objective, mesh=on, parts=parts
        )
        return found.params

    found, whole = (gradients(state, batch(on)) for state in states)
    expected, _ = split(whole, {"image": model.config.vision}, unlocked=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )


def test_a_step_leaves_what_is_locked_and_a_checkpoint_is_whole(
    model, compiled, batch, mesh, tmp_path
):
    on = mesh(4, 2)
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, layer_decay=0.5, ema_decay=0.5)
    run = compiled(on, model, model=SETTINGS, optimizer=optimizer)
    state, before = run.state(), run.first.variables
    for seed in range(2):
        state, _ = run.step(state, batch(on, seed))
    for moments in (state.opt_state, state.ema):
        assert not [name for name in names(moments) if "locked_blocks" in name]
        assert [name for name in names(moments) if "image/transformer/blocks" in name]
        assert not [name for name in names(moments) if "image/position_embedding" in name]
    with Checkpoints(tmp_path, CheckpointConfig(every_steps=1)) as checkpoints:
        checkpoints.save(2, state, metadata={})
    read, _ = read_variables(tmp_path, average=False)
    before = join_blocks(before)
    assert jax.tree.structure(read) == jax.tree.structure(before)
    same = jax.tree.map(np.array_equal, read["params"]["image"], before["params"]["image"])
    for name in ("patch_embedding", "class_embedding", "position_embedding", "pre_norm"):
        assert all(jax.tree.leaves(same[name]))
    assert not any(jax.tree.leaves((same["post_norm"], same["projection"])))
    kernel, old = (
        tree["params"]["image"]["transformer"]["blocks"]["mlp"]["up"]["kernel"]
        for tree in (read, before)
    )
    np.testing.assert_array_equal(kernel[0], old[0])
    assert not np.allclose(kernel[1], old[1])
    images_BHWC = np.asarray(batch(on)["image"])
    split_BE, whole_BE = (
        model.apply(jax.device_get(variables), images_BHWC, method="encode_image")
        for variables in (state.variables, read)
    )
    np.testing.assert_allclose(split_BE, whole_BE, atol=1e-6)

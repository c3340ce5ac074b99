"""Reading a model out of checkpoints, as an evaluation beside a training does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import CheckpointConfig
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.runs.trained_variables import read_variables
from clip_jax.training.state import Health, TrainState

CFG = CheckpointConfig(every_steps=1, every_minutes=None, keep_last=3)


def state(value: float, *, ema: bool = False, frozen: bool = False, stats: bool = False):
    def tower():
        return {"blocks": {"kernel": jnp.full((2, 8, 8), float(value))}}

    params = {"text": tower(), "logit_scale": jnp.asarray(2.0)}
    params |= {} if frozen else {"image": tower()}
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        frozen={"image": tower()} if frozen else {},
        batch_stats={"image": {"mean": jnp.ones(8)}} if stats else {},
        opt_state=optax.adamw(1e-3).init(params),
        ema=jax.tree.map(lambda x: x + 100, params) if ema else None,
        ema_batch_stats={"image": {"mean": jnp.full(8, 7.0)}} if stats and ema else {},
        health=Health(zero, zero, jnp.zeros(()), zero),
    )


def save(directory, *steps, **kwargs):
    with Checkpoints(directory, CFG) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step, **kwargs), metadata={})


@pytest.mark.parametrize(
    "kwargs", [{}, {"frozen": True}, {"stats": True}, {"ema": True}, {"ema": True, "stats": True}]
)
@pytest.mark.parametrize("average", [True, False])
def test_the_newest_model_is_read_whole_and_with_the_same_bits(tmp_path, kwargs, average):
    save(tmp_path, 1, 2, **kwargs)
    variables, step = read_variables(tmp_path, average=average)
    assert step == 2
    saved = state(2, **kwargs)
    expected = saved.ema_variables if average else saved.variables
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_a_step_may_be_chosen_and_the_average_left_out(tmp_path):
    save(tmp_path, 1, 2, ema=True)
    assert read_variables(tmp_path)[0]["params"]["logit_scale"] == 102
    assert read_variables(tmp_path, average=False)[0]["params"]["logit_scale"] == 2
    kernel = read_variables(tmp_path, step=1)[0]["params"]["text"]["blocks"]["kernel"]
    assert (kernel == 101).all()


def test_a_damaged_checkpoint_is_passed_over_and_nothing_is_changed(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()  # a training beside it is writing this one
    (tmp_path / "2" / "MANIFEST.json").unlink()
    before = sorted(tmp_path.iterdir())
    assert read_variables(tmp_path)[1] == 1
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match=r"is intact \(step 2: .*never completed"):
        read_variables(tmp_path, step=2)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint yet"):
        read_variables(tmp_path / "checkpoints")
    save(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 9: it has \[1\]"):
        read_variables(tmp_path, step=9)

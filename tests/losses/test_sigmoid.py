"""The sigmoid loss alone: its normalisation, and that no scale breaks it."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses import sigmoid_loss


def test_without_any_evidence_every_pair_costs_log_2_and_the_sum_is_over_the_batch(pairs):
    loss = sigmoid_loss(*pairs(10), 0.0, 0.0)
    np.testing.assert_allclose(loss, 10 * 10 * np.log(2) / 10, rtol=1e-6)


@pytest.mark.parametrize("tile", [None, 7])
@pytest.mark.parametrize("bias", [-10.0, 0.0, 10.0])
def test_a_scale_of_100_leaves_loss_and_gradients_exact(
    tile, bias, pairs, value_and_gradients, reference, assert_close
):
    arguments = (*pairs(48), jnp.float32(100), jnp.float32(bias))
    assert_close(
        value_and_gradients("sigmoid", arguments, tile=tile), reference("sigmoid", arguments)
    )

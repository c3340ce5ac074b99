"""The softmax loss alone: what is known of its value, and that no scale breaks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses import similarity, softmax_loss


def test_indistinguishable_pairs_cost_the_logarithm_of_the_batch(pairs):
    image_BE = np.repeat(pairs(1)[0], 10, axis=0)
    np.testing.assert_allclose(softmax_loss(image_BE, image_BE, 30.0), np.log(10), rtol=1e-6)


@pytest.mark.parametrize("tile", [None, 7])
def test_a_scale_of_100_leaves_loss_and_gradients_exact(
    tile, pairs, value_and_gradients, reference, assert_close
):
    arguments = (*pairs(48), jnp.float32(100))
    loss, gradients = value_and_gradients("softmax", arguments, tile=tile)
    expected_loss, expected = reference("softmax", arguments)
    # What is near 0 here is a difference of logits near 100, each of which float32 rounds by 4e-6.
    np.testing.assert_allclose(loss, expected_loss, rtol=0, atol=1e-6)
    assert_close(gradients, expected)


def test_logits_far_beyond_the_range_of_exp_stay_finite(pairs):
    image_BE, text_BE = pairs(16)
    fn = jax.value_and_grad(softmax_loss, (0, 1, 2))
    for leaf in jax.tree.leaves(fn(image_BE, -text_BE, jnp.float32(1e4))):
        assert np.isfinite(leaf).all()


def test_bfloat16_embeddings_lose_only_their_own_rounding(
    pairs, value_and_gradients, reference, assert_close
):
    image_BE, text_BE = (jnp.asarray(z, jnp.bfloat16) for z in pairs(48))
    arguments = (image_BE, text_BE, jnp.float32(100))
    loss, gradients = value_and_gradients("softmax", arguments, tile=8)
    expected_loss, expected = reference("softmax", arguments)
    assert loss.dtype == jnp.float32
    assert gradients[0].dtype == jnp.bfloat16
    assert_close(loss, expected_loss)
    assert_close(gradients, expected, tolerance=5e-3)


def test_similarity_is_the_cosine_of_every_image_with_every_text(pairs):
    image_IE, text_TE = pairs(6)[0], pairs(9)[1]
    cosines_IT = similarity(image_IE, text_TE)
    assert cosines_IT.dtype == jnp.float32
    np.testing.assert_allclose(cosines_IT, image_IE @ text_TE.T, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, bool])
def test_similarity_refuses_what_is_no_embedding_as_losses_do(dtype):
    image_IE, text_TE = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=f"z_text_TE has type {np.dtype(dtype)}: embeddings are"):
        similarity(image_IE, text_TE.astype(dtype))

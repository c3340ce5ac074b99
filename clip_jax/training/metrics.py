"""What is logged of a step beside its loss: how similar pairs are, and how similar all others."""

import jax
import jax.numpy as jnp


def mean_cosines(z_image_BE: jax.Array, z_text_BE: jax.Array) -> dict[str, jax.Array]:
    """The mean cosine of the pairs of a batch, and of all its other combinations.

    The sum of all similarities is one dot product, of the sum of images with that of texts, so
    that no device needs the rows of another.
    """
    z_image_BE, z_text_BE = jax.lax.stop_gradient((z_image_BE, z_text_BE))
    B = z_image_BE.shape[0]
    pairs = jnp.sum(z_image_BE * z_text_BE)
    others = jnp.sum(z_image_BE.sum(axis=0) * z_text_BE.sum(axis=0)) - pairs
    return {
        "cosine_pairs": pairs / B,
        "cosine_others": others / float(max(1, B * (B - 1))),  # above int32 from 65,537 pairs
    }

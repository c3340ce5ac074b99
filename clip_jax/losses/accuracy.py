"""Accuracy of a batch's pairs against all others, from the similarities that a loss has formed."""

import jax
import jax.numpy as jnp

from clip_jax.losses.distributed import SingleDevice
from clip_jax.losses.tiling import similarity


def count_hits(match_B: jax.Array, of_image_B: jax.Array, of_text_B: jax.Array) -> dict:
    """Of a device's pairs, those whose similarity no other text, or no other image, exceeds.

    Args:
      match_B: the similarity of each pair.
      of_image_B: the largest of each image with any text of the batch.
      of_text_B: the largest of each text with any image of the batch.
    """
    return {
        "image_to_text": jnp.sum(match_B >= of_image_B, dtype=jnp.float32),
        "text_to_image": jnp.sum(match_B >= of_text_B, dtype=jnp.float32),
    }


def accuracy(hits: dict, move: SingleDevice, count: int) -> dict[str, jax.Array]:
    """The shares of the whole batch, of which each device has `count` pairs."""
    hits = jax.lax.psum(hits, move.axes)
    return {f"accuracy_{way}": number / move.batch(count) for way, number in hits.items()}


def replicated_accuracy(z_image_BE: jax.Array, z_text_BE: jax.Array) -> dict[str, jax.Array]:
    """The reference that the others must equal."""
    similarity_BB = similarity(z_image_BE, z_text_BE)
    match_B = jnp.diagonal(similarity_BB)
    hits = count_hits(match_B, similarity_BB.max(axis=1), similarity_BB.max(axis=0))
    return {f"accuracy_{way}": number / len(match_B) for way, number in hits.items()}

"""Two terms of a loss that the tree does not have."""

import jax
import jax.numpy as jnp

from clip_jax.losses import Loss


def _uniformity(outputs, batch):
    """How alike all images of the batch are (arXiv:2005.10242, section 4.1.2)."""
    del batch
    cosine_BB = outputs.image @ outputs.image.T
    return jax.nn.logsumexp(2 * (cosine_BB - 1)) - 2 * jnp.log(len(cosine_BB))


def _lengths(outputs, batch):
    """One number of each text embedding tells how long the caption is: needs the tokens."""
    length_B = jnp.mean(batch["tokens"] > 0, axis=1)
    return jnp.square(outputs.text[:, 0] - length_B).mean(), {"mean_length": length_B.mean()}


UNIFORMITY = Loss(name="uniformity", function=_uniformity)
LENGTHS = Loss(name="lengths", function=_lengths, batch=("tokens",))

"""The contrastive losses: one definition each, and the ways to compute it over many devices."""

from clip_jax.losses.sigmoid import replicated_sigmoid_loss, sigmoid_loss
from clip_jax.losses.softmax import replicated_softmax_loss, softmax_loss
from clip_jax.losses.tiling import similarity

LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}

__all__ = [
    "LOSSES",
    "replicated_sigmoid_loss",
    "replicated_softmax_loss",
    "sigmoid_loss",
    "similarity",
    "softmax_loss",
]

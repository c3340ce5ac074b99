"""The contrastive losses: one definition each, and the ways to compute it over many devices."""

from clip_jax.losses.objective import LOSSES
from clip_jax.losses.record import Loss
from clip_jax.losses.sigmoid import replicated_sigmoid_loss, sigmoid_loss
from clip_jax.losses.softmax import replicated_softmax_loss, softmax_loss
from clip_jax.losses.tiling import similarity

__all__ = [
    "LOSSES",
    "Loss",
    "replicated_sigmoid_loss",
    "replicated_softmax_loss",
    "sigmoid_loss",
    "similarity",
    "softmax_loss",
]

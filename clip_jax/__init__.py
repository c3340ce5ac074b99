"""CLIP training in JAX: models, losses, released weights, and the pure functions they are made of."""

from clip_jax.config import ModelConfig, TrainConfig
from clip_jax.load import load
from clip_jax.losses import sigmoid_loss, similarity, softmax_loss
from clip_jax.models.clip import CLIP, Outputs, create_model
from clip_jax.weights.load import Loaded

__all__ = [
    "CLIP",
    "Loaded",
    "ModelConfig",
    "Outputs",
    "TrainConfig",
    "create_model",
    "load",
    "sigmoid_loss",
    "similarity",
    "softmax_loss",
]

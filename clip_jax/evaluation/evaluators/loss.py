"""The run's own loss on data that it was not trained on."""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.config import LossConfig, ModelConfig
from clip_jax.evaluation.encode import check_stop, put
from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.losses import LOSSES
from clip_jax.registry import resolve
from clip_jax.runs.results import Evaluation

TILE = 1024  # rows of a batch's similarities that a device holds at once


def measure(data: Embedded) -> Evaluation:
    """The mean loss of batches as large as in training, each image with its first caption.

    The batches are drawn at random, the same ones each time, because a data set often has what
    is alike side by side. Where there are fewer pairs than a batch has, they are the batch,
    less those that do not divide over the devices.
    """
    mesh = data.encoder.mesh
    image_N, first_N = np.unique(data.image_of_text_M, return_index=True)
    order = np.random.default_rng(0).permutation(len(image_N))
    size = min(data.data.batch_size, len(order))
    split = size >= mesh.size
    if split:
        size -= size % mesh.size
    place = (sharding.batch_sharding if split else sharding.replicated)(mesh)
    names = scalar_names(data.loss.kind)
    scalars = _scalars(data.encoder.variables["params"], names, data.loss.kind)
    loss = _batch_loss(mesh, data.loss.kind, split)
    values = []
    for start in range(0, len(order) - size + 1, size):
        check_stop(data.should_stop)
        rows = order[start : start + size]
        z_image_BE = put(data.z_image_NE[image_N[rows]], place)
        z_text_BE = put(data.z_text_ME[first_N[rows]], place)
        values.append(loss(z_image_BE, z_text_BE, *scalars))
    return Evaluation(metrics={"loss": float(np.mean(jax.device_get(values)))})


def default_loss(config: ModelConfig) -> LossConfig:
    """The loss of released weights, which do not tell it: a model with a bias is SigLIP's."""
    return LossConfig(kind="softmax" if config.init_logit_bias is None else "sigmoid")


def scalar_names(kind: str) -> tuple[str, ...]:
    """The scalars of the model that a loss takes."""
    parameters = inspect.signature(resolve("loss.kind", kind, LOSSES)).parameters
    return tuple(name for name in ("logit_scale", "logit_bias") if name in parameters)


def _scalars(params: dict, names: tuple[str, ...], kind: str) -> list[jax.Array]:
    if missing := [name for name in names if name not in params]:
        raise ValueError(
            f"loss.kind={kind} takes {', '.join(missing)}, which the model does not have: name the "
            "loss that it was trained with, or take loss out of evaluation.metrics"
        )
    return [jnp.exp(params[name]) if name == "logit_scale" else params[name] for name in names]


@functools.lru_cache(maxsize=4)
def _batch_loss(mesh: Mesh, kind: str, split: bool) -> Callable[..., jax.Array]:
    """The loss of a batch, split over the devices or whole on each; compiled once."""
    loss = resolve("loss.kind", kind, LOSSES)
    if split:
        loss = jax.shard_map(
            functools.partial(loss, axis_name=sharding.AXES, tile=TILE),
            mesh=mesh,
            in_specs=(sharding.BATCH, sharding.BATCH, *[P()] * len(scalar_names(kind))),
            out_specs=P(),
        )
    return jax.jit(loss, out_shardings=sharding.replicated(mesh))


LOSS = Evaluator(measure=measure, metrics={"loss": "lower"}, needs=("captions",), headline="loss")

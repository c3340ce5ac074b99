"""The run's own loss on data that it was not trained on."""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.config import LossConfig, ModelConfig
from clip_jax.evaluation.encode import check_stop, put
from clip_jax.evaluation.evaluator import Embedded, Evaluator
from clip_jax.losses.objective import kind_for, make_objective
from clip_jax.models.clip import Outputs
from clip_jax.runs.results import Evaluation

log = logging.getLogger(__name__)

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
    to = (sharding.batch_sharding if split else sharding.replicated)(mesh)
    loss, params = _batch_loss(mesh, data.loss, split), data.encoder.variables["params"]
    scalars = jnp.exp(params["logit_scale"]), params.get("logit_bias")
    values = []
    for start in range(0, len(order) - size + 1, size):
        check_stop(data.should_stop)
        rows = order[start : start + size]
        z_image_BE = put(data.z_image_NE[image_N[rows]], to)
        z_text_BE = put(data.z_text_ME[first_N[rows]], to)
        values.append(loss(Outputs(z_image_BE, z_text_BE, *scalars)))
    found = jax.tree.map(lambda *x: float(np.mean(x)), *jax.device_get(values))
    return Evaluation(metrics=found)


def default_loss(config: ModelConfig) -> LossConfig:
    """The loss of released weights, which do not tell it: the one that reads their scalars."""
    bias = () if config.init_logit_bias is None else ("logit_bias",)
    return LossConfig(kind=kind_for(("logit_scale", *bias)))


@functools.lru_cache(maxsize=4)
def _batch_loss(mesh: Mesh, cfg: LossConfig, split: bool) -> Callable[[Outputs], dict]:
    """The loss of a batch, split over the devices or whole on each; compiled once.

    Where it has several terms, each is measured too.

    Raises:
      ValueError: no term of it can be computed from embeddings alone.
    """
    objective, left_out = make_objective(cfg).of_embeddings(tile=TILE if split else None)
    if objective is None:
        raise ValueError(
            f"loss.kind={cfg.kind} needs more than embeddings: take loss out of evaluation.metrics"
        )
    if left_out:
        log.warning("The evaluation's loss is without %s: it needs more than embeddings", left_out)

    def loss(outputs: Outputs) -> dict:
        total, metrics = objective(outputs, {}, mesh=mesh if split else None)
        terms = {name: x for name, x in metrics.items() if name.startswith("loss/")}
        return {"loss": total} | (terms if len(objective.terms) > 1 else {})

    return jax.jit(loss, out_shardings=sharding.replicated(mesh))


LOSS = Evaluator(measure=measure, metrics={"loss": "lower"}, needs=("captions",), headline="loss")

"""Gradients of the loss of a whole batch, embedded in one piece or in micro-batches."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.losses.objective import Objective
from clip_jax.models.clip import CLIP, Outputs
from clip_jax.models.freezing import merge, variables_of
from clip_jax.training.state import TrainState


class Gradients(NamedTuple):
    """What the forward and the backward pass of a batch give."""

    loss: jax.Array
    metrics: dict  # of the terms of the loss
    params: dict  # gradients of the trained parameters
    batch_stats: dict
    outputs: Outputs


def batch_gradients(
    state: TrainState,
    batch: dict,
    key: jax.Array,
    *,
    model: CLIP,
    objective: Objective,
    mesh: Mesh,
    parts: int,
) -> Gradients:
    """Gradients of the loss of the whole batch, embedded in one piece or in `parts` micro-batches.

    With several parts the outputs of all are computed first and without their activations, the
    loss is computed once over all of them, and each part is then computed again, with the same
    random numbers, to carry its share of the gradient back (GradCache, arXiv:2101.06983). That
    holds for all per-sample arrays of `Outputs` that the objective reads.
    """

    def embed(params, batch_stats, part, part_key) -> tuple[Outputs, dict]:
        variables = variables_of(merge(params, state.frozen), batch_stats)
        outputs, updated = model.apply(
            variables,
            part["image"],
            part["tokens"],
            train=True,
            frozen=tuple(state.frozen),
            rngs={"dropout": part_key},
            mutable=["batch_stats"],
        )
        return objective.keep_read(outputs), updated.get("batch_stats", {})

    if parts > 1:
        how = {"embed": embed, "objective": objective, "mesh": mesh, "parts": parts}
        return _in_parts(state, batch, key, **how)

    def loss_of(params):
        outputs, batch_stats = embed(params, state.batch_stats, batch, key)
        loss, metrics = objective(outputs, batch, mesh=mesh)
        return loss, (metrics, batch_stats, outputs)

    (loss, (metrics, batch_stats, outputs)), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    return Gradients(loss, metrics, grads, batch_stats, outputs)


def _in_parts(
    state: TrainState,
    batch: dict,
    key: jax.Array,
    *,
    embed: Callable[..., tuple[Outputs, dict]],
    objective: Objective,
    mesh: Mesh,
    parts: int,
) -> Gradients:
    batches = jax.tree.map(lambda x: split_batch(x, parts, mesh), batch)
    keys = jax.random.split(key, parts)

    def embed_part(batch_stats, inputs):
        outputs, updated = embed(state.params, batch_stats, *inputs)
        return updated, (per_sample(outputs), batch_stats)

    batch_stats, (embedded, stats_before) = jax.lax.scan(
        embed_part, state.batch_stats, (batches, keys)
    )
    rows = jax.tree.map(lambda x_PB: join_batch(x_PB, mesh), embedded)

    def loss_of_rows(rows, temperature):
        scale, bias = jnp.exp(temperature["logit_scale"]), temperature.get("logit_bias")
        outputs = rows._replace(logit_scale=scale, logit_bias=bias)
        loss, metrics = objective(outputs, batch, mesh=mesh)
        return loss, (metrics, outputs)

    temperature = {k: v for k, v in state.params.items() if k.startswith("logit_")}
    (loss, (metrics, outputs)), (d_rows, d_temperature) = jax.value_and_grad(
        loss_of_rows, argnums=(0, 1), has_aux=True
    )(rows, temperature)
    cotangents = jax.tree.map(lambda x_B: split_batch(x_B, parts, mesh), d_rows)

    def carry_back(total, inputs):
        part, part_key, stats, cotangent = inputs

        def towers(params):
            return per_sample(embed(params, stats, part, part_key)[0])

        (grads,) = jax.vjp(towers, state.params)[1](cotangent)
        return jax.tree.map(jnp.add, total, grads), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, _ = jax.lax.scan(carry_back, zeros, (batches, keys, stats_before, cotangents))
    return Gradients(loss, metrics, grads | d_temperature, batch_stats, outputs)


def per_sample(outputs: Outputs) -> Outputs:
    """Without the scalars, which all micro-batches share.

    Raises:
      ValueError: an extra array has no gradient to carry back.
    """
    for name, x in outputs.extra.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"Outputs.extra[{name!r}] has type {x.dtype}: extra arrays are floating-point "
                "numbers; a loss reads ids and masks from the batch"
            )
    return outputs._replace(logit_scale=None, logit_bias=None)


def split_batch(x_B: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """(B, ...) to (parts, B / parts, ...), every device keeping the rows that it has."""
    x_BP = x_B.reshape(x_B.shape[0] // parts, parts, *x_B.shape[1:])
    x_PB = jnp.swapaxes(x_BP, 0, 1)
    return jax.lax.with_sharding_constraint(x_PB, NamedSharding(mesh, P(None, sharding.AXES)))


def join_batch(x_PB: jax.Array, mesh: Mesh) -> jax.Array:
    """The inverse of `split_batch`."""
    x_BP = jnp.swapaxes(x_PB, 0, 1)
    x_B = x_BP.reshape(x_BP.shape[0] * x_BP.shape[1], *x_BP.shape[2:])
    return jax.lax.with_sharding_constraint(x_B, sharding.batch_sharding(mesh))

"""Gradients of the loss of a whole batch, embedded in one piece or in micro-batches."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.config import LossConfig
from clip_jax.losses import sigmoid_loss, softmax_loss
from clip_jax.models.clip import CLIP, Outputs
from clip_jax.models.freezing import merge, variables_of
from clip_jax.training.state import TrainState

LossFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


class Gradients(NamedTuple):
    """What the forward and the backward pass of a batch give."""

    loss: jax.Array
    params: dict  # gradients of the trained parameters
    batch_stats: dict
    image_BE: jax.Array
    text_BE: jax.Array


def sharded_loss(mesh: Mesh, cfg: LossConfig) -> LossFn:
    """The loss of a global batch that lies on the mesh, each device working on its rows."""
    how = {"axis_name": sharding.AXES, "distributed": cfg.distributed, "tile": cfg.tile}
    rows, whole = sharding.BATCH, P()
    specs = {"softmax": (rows, rows, whole), "sigmoid": (rows, rows, whole, whole)}[cfg.kind]
    kinds = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
    one = functools.partial(kinds[cfg.kind], **how)
    over_mesh = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=whole)

    def loss(z_image_BE, z_text_BE, logit_scale, logit_bias):
        bias = () if cfg.kind == "softmax" else (logit_bias,)
        return over_mesh(z_image_BE, z_text_BE, logit_scale, *bias)

    return loss


def batch_gradients(
    state: TrainState,
    batch: dict,
    key: jax.Array,
    *,
    model: CLIP,
    loss_fn: LossFn,
    mesh: Mesh,
    parts: int,
) -> Gradients:
    """Gradients of the loss of the whole batch, embedded in one piece or in `parts` micro-batches.

    With several parts the embeddings of all are computed first and without their activations,
    the loss is taken once over all of them, and each part is then embedded anew, with the same
    random numbers, to carry its share of the gradient back (GradCache, arXiv:2101.06983).
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
        return outputs, updated.get("batch_stats", {})

    if parts > 1:
        return _in_parts(state, batch, key, embed=embed, loss_fn=loss_fn, mesh=mesh, parts=parts)

    def loss_of(params):
        outputs, batch_stats = embed(params, state.batch_stats, batch, key)
        return loss_fn(*outputs), (batch_stats, outputs)

    (loss, (batch_stats, outputs)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return Gradients(loss, grads, batch_stats, outputs.image, outputs.text)


def _in_parts(
    state: TrainState,
    batch: dict,
    key: jax.Array,
    *,
    embed: Callable[..., tuple[Outputs, dict]],
    loss_fn: LossFn,
    mesh: Mesh,
    parts: int,
) -> Gradients:
    batches = jax.tree.map(lambda x: split_batch(x, parts, mesh), batch)
    keys = jax.random.split(key, parts)

    def embed_part(batch_stats, inputs):
        outputs, updated = embed(state.params, batch_stats, *inputs)
        return updated, (outputs.image, outputs.text, batch_stats)

    batch_stats, (*embedded, stats_before) = jax.lax.scan(
        embed_part, state.batch_stats, (batches, keys)
    )
    image_BE, text_BE = (join_batch(z_PBE, mesh) for z_PBE in embedded)

    def loss_of_embeddings(z_image_BE, z_text_BE, temperature):
        scale, bias = jnp.exp(temperature["logit_scale"]), temperature.get("logit_bias")
        return loss_fn(z_image_BE, z_text_BE, scale, bias)

    temperature = {k: v for k, v in state.params.items() if k.startswith("logit_")}
    loss, (d_image_BE, d_text_BE, to_temperature) = jax.value_and_grad(
        loss_of_embeddings, argnums=(0, 1, 2)
    )(image_BE, text_BE, temperature)
    cotangents = tuple(split_batch(z_BE, parts, mesh) for z_BE in (d_image_BE, d_text_BE))

    def carry_back(total, inputs):
        part, part_key, stats, cotangent = inputs

        def towers(params):
            outputs, _ = embed(params, stats, part, part_key)
            return outputs.image, outputs.text

        (grads,) = jax.vjp(towers, state.params)[1](cotangent)
        return jax.tree.map(jnp.add, total, grads), None

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, _ = jax.lax.scan(carry_back, zeros, (batches, keys, stats_before, cotangents))
    return Gradients(loss, grads | to_temperature, batch_stats, image_BE, text_BE)


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

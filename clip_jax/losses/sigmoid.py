"""SigLIP's loss: each of all pairs of a batch is judged alone, as a match or not."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from clip_jax.losses.accuracy import accuracy, count_hits, replicated_accuracy
from clip_jax.losses.arguments import AxisName, checked
from clip_jax.losses.distributed import SingleDevice, gather_all, make_strategy
from clip_jax.losses.record import Loss
from clip_jax.losses.tiling import Largest, similarity, similarity_vjp
from clip_jax.numerics import on_auto_axes


def replicated_sigmoid_loss(
    z_image_BE: jax.Array, z_text_BE: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array
) -> jax.Array:
    """Algorithm 1 of arXiv:2303.15343. The reference that faster forms must equal."""
    B = z_image_BE.shape[0]
    logits_BB = logit_scale * similarity(z_image_BE, z_text_BE) + logit_bias
    label_BB = 2 * jnp.eye(B, dtype=logits_BB.dtype) - 1  # 1 for a match, -1 for all others
    return -jax.nn.log_sigmoid(label_BB * logits_BB).sum() / B


def sigmoid_loss(
    z_image_BE: jax.Array,
    z_text_BE: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    *,
    axis_name: AxisName = None,
    distributed: str = "gather",
    tile: int | None = None,
) -> jax.Array:
    """SigLIP's binary cross-entropy over all pairs of a batch.

    The sum over all pairs of -log sigmoid(label * (scale * cosine + bias)), the label 1 for a
    match and -1 for every other pair, divided by the batch size (algorithm 1 of
    arXiv:2303.15343), exact on every mesh. Logits and the loss are float32. Gradients reach
    all four arrays, whether `jax.grad` is taken inside of the user's `jax.shard_map` or around
    it; they come from the pass that computes the loss, also where it is tiled.

    Forward-mode derivatives (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) exist for
    distributed="replicated" alone; the other forms have a gradient rule of their own, and JAX
    raises a TypeError that names custom_vjp. `jax.hessian`, which differentiates the gradient,
    works for all of them.

    Args:
      z_image_BE: image embeddings (batch, embedding) of length 1, float32 or bfloat16. With
        `axis_name`, the device's rows of the batch.
      z_text_BE: text embeddings, likewise; row i is the match of image i.
      logit_scale: scalar, the multiplier of the cosines (not its logarithm).
      logit_bias: scalar, added to every logit.
      axis_name: as for `softmax_loss`.
      distributed: as for `softmax_loss`.
      tile: as for `softmax_loss`.

    Returns:
      The loss of the whole batch, float32, the same on every device.

    Raises:
      ValueError: when shapes, axes, `distributed` or `tile` do not fit.
    """
    how = {"axis_name": axis_name, "distributed": distributed, "tile": tile}
    return _loss_and_accuracy(z_image_BE, z_text_BE, logit_scale, logit_bias, **how)[0]


def _loss_and_accuracy(*arrays, **how):
    return on_auto_axes(functools.partial(_on_any_mesh, **how), P(), *arrays)


def _on_any_mesh(z_image_BE, z_text_BE, logit_scale, logit_bias, *, axis_name, distributed, tile):
    axes, (z_image_BE, z_text_BE, logit_scale, logit_bias) = checked(
        z_image_BE,
        z_text_BE,
        {"logit_scale": logit_scale, "logit_bias": logit_bias},
        axis_name=axis_name,
        distributed=distributed,
        tile=tile,
    )
    if distributed == "replicated":
        whole = tuple(gather_all(z, axes) for z in (z_image_BE, z_text_BE))
        loss = jax.lax.pmean(replicated_sigmoid_loss(*whole, logit_scale, logit_bias), axes)
        return loss, jax.lax.pmean(replicated_accuracy(*whole), axes)
    move = make_strategy(distributed, axes, tile)
    share, hits = _share(z_image_BE, z_text_BE, logit_scale, logit_bias, move)
    return jax.lax.psum(share, axes), accuracy(hits, move, len(z_image_BE))


def _term(outputs, batch, **how):
    del batch
    scalars = outputs.logit_scale, outputs.logit_bias
    return _loss_and_accuracy(outputs.image, outputs.text, *scalars, **how)


# Where SigLIP starts (arXiv:2303.15343, section 3.2).
SIGMOID = Loss(
    name="sigmoid",
    function=_term,
    sharded=True,
    scalars={"logit_scale": math.log(10), "logit_bias": -10.0},
)


def _wrongness(rows, columns, scale, bias) -> tuple[jax.Array, jax.Array]:
    """-label * logit of each pair, and -label."""
    (image_RE, place_R), (text_BE, place_B) = rows, columns
    sign_RB = jnp.where(place_R[:, None] == place_B[None, :], -1, 1)
    return sign_RB * (scale * similarity(image_RE, text_BE) + bias), sign_RB


def _largest(wrong_RB, sign_RB) -> tuple[tuple[jax.Array, Largest], Largest]:
    """The logit of the match of each row, with the largest of the row; the largest of columns."""
    logits_RB = sign_RB * wrong_RB
    match_R = jnp.where(sign_RB < 0, logits_RB, 0).sum(axis=1)
    return (match_R, Largest(logits_RB.max(axis=1))), Largest(logits_RB.max(axis=0))


def _hits(for_rows: tuple[jax.Array, Largest], for_columns: Largest, move: SingleDevice) -> dict:
    match_B, row_B = for_rows
    return count_hits(match_B, row_B.max, move.own(for_columns, len(match_B)).max)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _share(image_BE, text_BE, scale, bias, move: SingleDevice) -> tuple[jax.Array, dict]:
    """The device's share of the loss, its rows, and how many of its pairs are right."""

    def block(rows, columns, _):
        wrong_RB, sign_RB = _wrongness(rows, columns, scale, bias)
        for_rows, for_columns = _largest(wrong_RB, sign_RB)
        return (jax.nn.softplus(wrong_RB).sum(axis=1), for_rows), for_columns, None

    (loss_B, found), column_B, _ = move.sweep(block, move.rows(image_BE), move.columns(text_BE))
    return loss_B.sum() / move.batch(len(loss_B)), _hits(found, column_B, move)


def _share_forward(image_BE, text_BE, scale, bias, move: SingleDevice):
    """The share and its gradients, from the same logits."""

    def block(rows, columns, _):
        wrong_RB, sign_RB = _wrongness(rows, columns, scale, bias)
        # softplus and its derivative, the sigmoid, of one exponential that cannot overflow.
        small_RB = jnp.exp(-jnp.abs(wrong_RB))
        gradient_RB = sign_RB * jnp.where(wrong_RB < 0, small_RB, 1) / (1 + small_RB)
        d_image_RE, d_text_EB = similarity_vjp(gradient_RB, rows[0], columns[0])
        loss_R = (jnp.maximum(wrong_RB, 0) + jnp.log1p(small_RB)).sum(axis=1)
        row_R, column_B = _largest(wrong_RB, sign_RB)
        return (loss_R, gradient_RB.sum(axis=1), d_image_RE, row_R), (d_text_EB, column_B), None

    rows, columns = move.rows(image_BE), move.columns(text_BE)
    for_rows, (d_text_BE, column_B), _ = move.sweep(block, rows, columns)
    loss_B, d_bias_B, d_image_BE, row_B = for_rows
    weight = 1 / move.batch(len(loss_B))
    d_scale = weight * (image_BE * d_image_BE).sum()
    gradients = weight * scale * d_image_BE, weight * scale * d_text_BE
    found = weight * loss_B.sum(), _hits(row_B, column_B, move)
    return found, (image_BE[:0], *gradients, d_scale, weight * d_bias_B.sum())


def _share_backward(move: SingleDevice, saved, cotangents):
    (like, *gradients), (cotangent, _) = saved, cotangents
    d_image_BE, d_text_BE, *to_scalars = (cotangent * part for part in gradients)
    return d_image_BE.astype(like.dtype), d_text_BE.astype(like.dtype), *to_scalars


_share.defvjp(_share_forward, _share_backward)

"""CLIP's loss: each image picks its text among all of the batch, and each text its image."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from clip_jax.losses.accuracy import accuracy, count_hits, replicated_accuracy
from clip_jax.losses.arguments import AxisName, checked
from clip_jax.losses.distributed import SingleDevice, gather_all, make_strategy
from clip_jax.losses.record import Loss
from clip_jax.losses.residuals import PackedResiduals, max_norm
from clip_jax.losses.tiling import LogSumExp, similarity, similarity_vjp
from clip_jax.numerics import on_auto_axes


def replicated_softmax_loss(
    z_image_BE: jax.Array, z_text_BE: jax.Array, logit_scale: jax.Array
) -> jax.Array:
    """Figure 3 of arXiv:2103.00020. The reference that faster forms must equal."""
    logits_BB = logit_scale * similarity(z_image_BE, z_text_BE)
    match_B = jnp.diagonal(logits_BB)
    image_to_text_B = jax.nn.logsumexp(logits_BB, axis=1) - match_B
    text_to_image_B = jax.nn.logsumexp(logits_BB, axis=0) - match_B
    return (image_to_text_B.mean() + text_to_image_B.mean()) / 2


def softmax_loss(
    z_image_BE: jax.Array,
    z_text_BE: jax.Array,
    logit_scale: jax.Array,
    *,
    axis_name: AxisName = None,
    distributed: str = "gather",
    tile: int | None = None,
) -> jax.Array:
    """CLIP's symmetric cross-entropy over the similarities of all pairs of a batch.

    The mean, over the batch's rows and columns, of -log softmax at the matching pair (figure 3 of
    arXiv:2103.00020), exact on every mesh. Logits, log-sum-exps and the loss are float32, and
    no logit is too large for them. Gradients reach all three arrays, whether `jax.grad` is
    taken inside of the user's `jax.shard_map` or around it.

    Forward-mode derivatives (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) exist for
    distributed="replicated" alone; the other forms have a gradient rule of their own, and JAX
    raises a TypeError that names custom_vjp. `jax.hessian`, which differentiates the gradient,
    works for all of them.

    Args:
      z_image_BE: image embeddings (batch, embedding) of length 1, float32 or bfloat16. With
        `axis_name`, the device's rows of the batch.
      z_text_BE: text embeddings, likewise; row i is the match of image i.
      logit_scale: scalar, the multiplier of the cosines (not its logarithm).
      axis_name: None when the arrays are the whole batch; else inside `jax.shard_map`, the
        mesh axis, or the tuple of axes, over which the batch is split.
      distributed: how the devices meet, where there is more than one. "gather": texts are
        gathered, each device holds one block of logits, column sums are reduced. "ring": texts
        travel round the devices while these compute; a device never holds more than two
        devices' texts. "replicated": every device gathers everything and does the same; for tests.
      tile: rows' worth of similarities that a device holds at once, so that memory grows with
        batch x tile; a gradient then computes them twice. None: all of its rows, which a ring
        keeps for the gradient in three bytes a pair (as exact as float32 products are).

    Returns:
      The loss of the whole batch, float32, the same on every device.

    Raises:
      ValueError: when shapes, axes, `distributed` or `tile` do not fit.
    """
    how = {"axis_name": axis_name, "distributed": distributed, "tile": tile}
    return _loss_and_accuracy(z_image_BE, z_text_BE, logit_scale, **how)[0]


def _loss_and_accuracy(*arrays, **how):
    return on_auto_axes(functools.partial(_on_any_mesh, **how), P(), *arrays)


def _on_any_mesh(z_image_BE, z_text_BE, logit_scale, *, axis_name, distributed, tile):
    axes, (z_image_BE, z_text_BE, logit_scale) = checked(
        z_image_BE,
        z_text_BE,
        {"logit_scale": logit_scale},
        axis_name=axis_name,
        distributed=distributed,
        tile=tile,
    )
    if distributed == "replicated":
        whole = tuple(gather_all(z, axes) for z in (z_image_BE, z_text_BE))
        loss = jax.lax.pmean(replicated_softmax_loss(*whole, logit_scale), axes)
        return loss, jax.lax.pmean(replicated_accuracy(*whole), axes)
    move = make_strategy(distributed, axes, tile)
    share, hits = _share(z_image_BE, z_text_BE, logit_scale, move)
    return jax.lax.psum(share, axes), accuracy(hits, move, len(z_image_BE))


def _term(outputs, batch, **how):
    del batch
    return _loss_and_accuracy(outputs.image, outputs.text, outputs.logit_scale, **how)


SOFTMAX = Loss(
    name="softmax",
    function=_term,
    sharded=True,
    scalars={"logit_scale": math.log(1 / 0.07)},
    random_loss=math.log,
    ring_bytes_per_pair=3.0,  # PackedResiduals
)


def scaled_similarity(image_RE: jax.Array, text_BE: jax.Array, scale: jax.Array) -> jax.Array:
    """The logits, bit-identical each time that they are formed.

    After a product the compiler may or may not round before it goes on to subtract, and 100 times a
    cosine less its maximum would keep the difference. bfloat16 embeddings have no room for a scale.
    """
    if image_RE.dtype == jnp.bfloat16:
        return scale * similarity(image_RE, text_BE)
    return similarity(scale * image_RE, text_BE)


def keep_logits(
    logits_RB: jax.Array, image_RE: jax.Array, text_BE: jax.Array, scale: jax.Array
) -> PackedResiduals | None:
    """The logits for a later sweep; None if they are wider than float32."""
    if logits_RB.dtype != jnp.float32:
        return None
    return PackedResiduals.of(logits_RB, jnp.abs(scale) * max_norm(image_RE) * max_norm(text_BE))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _share(image_BE, text_BE, scale, move: SingleDevice) -> tuple[jax.Array, dict]:
    """The device's share of the loss, its rows and its columns, and how many of them are right."""
    rows, columns = move.rows(image_BE), move.columns(text_BE)
    return _share_and_denominators(rows, columns, scale, move, keep=False)[0]


def _share_and_denominators(rows, columns, scale, move: SingleDevice, *, keep: bool):
    """The share, the log-sum-exps of the device's rows and of the columns, and logits to keep."""

    def block(rows, columns, _):
        (image_RE, place_R), (text_BE, place_B) = rows, columns
        logits_RB, kept = scaled_similarity(image_RE, text_BE, scale), None
        if keep and (kept := keep_logits(logits_RB, image_RE, text_BE, scale)) is not None:
            logits_RB = kept.restore()
        match_R = jnp.where(place_R[:, None] == place_B[None, :], logits_RB, 0).sum(axis=1)
        return (LogSumExp.of(logits_RB, 1), match_R), LogSumExp.of(logits_RB, 0), kept

    (row_B, match_B), column_B, kept = move.sweep(block, rows, columns)
    own_B = move.own(column_B, len(match_B))
    share = (row_B.minus(match_B) + own_B.minus(match_B)).sum()
    hits = count_hits(match_B, row_B.max, own_B.max)
    return (share / (2 * move.batch(len(match_B))), hits), row_B, column_B, kept


def _share_forward(image_BE, text_BE, scale, move: SingleDevice):
    """The share and its gradients. Logits that were not kept are formed once more."""

    def block(rows, columns, kept):
        (image_RE, place_R), row_R = rows
        (text_BE, place_B), column_B = columns
        logits_RB = kept.restore() if kept else scaled_similarity(image_RE, text_BE, scale)
        match_RB = place_R[:, None] == place_B[None, :]
        gradient_RB = row_R.softmax(logits_RB, 1) + column_B.softmax(logits_RB, 0) - 2 * match_RB
        return *similarity_vjp(gradient_RB, image_RE, text_BE), None

    rows, columns = move.rows(image_BE), move.columns(text_BE)
    share, row_B, column_B, kept = _share_and_denominators(
        rows, columns, scale, move, keep=move.keeps
    )
    d_image_BE, d_text_BE, _ = move.sweep(block, (rows, row_B), (columns, column_B), kept)
    weight = 1 / (2 * move.batch(len(image_BE)))
    d_scale = weight * (image_BE * d_image_BE).sum()
    weight *= scale
    return share, (image_BE[:0], weight * d_image_BE, weight * d_text_BE, d_scale)


def _share_backward(move: SingleDevice, saved, cotangents):
    (like, *gradients), (cotangent, _) = saved, cotangents
    d_image_BE, d_text_BE, d_scale = (cotangent * part for part in gradients)
    return d_image_BE.astype(like.dtype), d_text_BE.astype(like.dtype), d_scale


_share.defvjp(_share_forward, _share_backward)

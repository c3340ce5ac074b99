"""What is logged of a step: how well a batch's pairs are told apart, and how fast that went."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax import sharding

BLOCK = 2**24  # cosines that a device holds at once


def in_batch_metrics(z_image_BE: jax.Array, z_text_BE: jax.Array, mesh: Mesh) -> dict:
    """Accuracy both ways within the global batch, and the mean cosine of pairs and of the rest.

    A pair counts as right when no other candidate is more similar; equal captions are no error.
    """
    z_image_BE, z_text_BE = jax.lax.stop_gradient((z_image_BE, z_text_BE))
    found = jax.shard_map(
        functools.partial(_matches, axes=sharding.AXES),
        mesh=mesh,
        in_specs=(sharding.BATCH, sharding.BATCH),
        out_specs=P(),
    )(z_image_BE, z_text_BE)
    B = z_image_BE.shape[0]
    cosine = found["diagonal"] / B
    # The sum of all similarities is one dot product: of the sum of images with that of texts.
    rest = jnp.sum(z_image_BE.sum(axis=0) * z_text_BE.sum(axis=0)) - found["diagonal"]
    return {
        "accuracy_image_to_text": found["image_to_text"] / B,
        "accuracy_text_to_image": found["text_to_image"] / B,
        "cosine_pairs": cosine,
        "cosine_others": rest / float(max(1, B * (B - 1))),  # above int32 from 65,537 pairs
    }


def _matches(z_image_BE: jax.Array, z_text_BE: jax.Array, *, axes: tuple) -> dict:
    """Counts over the whole batch, each device comparing its images with all texts."""
    b = z_image_BE.shape[0]
    texts_BE = jax.lax.all_gather(z_text_BE, axes, tiled=True)
    B = texts_BE.shape[0]
    first = jax.lax.axis_index(axes) * b
    rows = max(r for r in range(1, b + 1) if b % r == 0 and (r == 1 or r * B <= BLOCK))

    def look(block_RE, start):
        cosines_RB = jnp.matmul(block_RE, texts_BE.T, precision=jax.lax.Precision.DEFAULT)
        own_R1 = (first + start + jnp.arange(rows))[:, None]
        match_R = jnp.take_along_axis(cosines_RB, own_R1, axis=1)[:, 0]
        return match_R, cosines_RB.max(axis=1), cosines_RB.max(axis=0)

    def scan(best_B, inputs):
        match_R, row_best_R, column_best_B = look(*inputs)
        return jnp.maximum(best_B, column_best_B), (match_R, row_best_R)

    blocks = z_image_BE.reshape(b // rows, rows, -1), jnp.arange(0, b, rows)
    start_B = jax.lax.pcast(jnp.full(B, -jnp.inf), axes, to="varying")
    best_B, (match_TR, row_best_TR) = jax.lax.scan(scan, start_B, blocks)
    best_B = jax.lax.dynamic_slice_in_dim(jax.lax.pmax(best_B, axes), first, b)
    match_B = match_TR.reshape(b)
    counts = {
        "diagonal": match_B.sum(),
        "image_to_text": jnp.sum(match_B >= row_best_TR.reshape(b), dtype=jnp.float32),
        "text_to_image": jnp.sum(match_B >= best_B, dtype=jnp.float32),
    }
    return jax.lax.psum(counts, axes)

"""A decoder that predicts a caption from the image, and a frozen teacher: terms with parts of their own."""

import functools
import os
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.config import ModelConfig
from clip_jax.load import load_to_host
from clip_jax.losses import Loss
from clip_jax.models.clip import CLIP
from clip_jax.models.tower import Compute, Head


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Head):
    """One layer that reads the tokens of the text so far and all of the image."""

    name: str = "decoder"
    width: int = 32

    def module(self, model: ModelConfig, compute: Compute) -> "Decoder":
        return Decoder(self.width, model.text.vocab_size, compute.dtype)


class Decoder(nn.Module):
    """The cross-entropy of each pair's next tokens (arXiv:2205.01917, without its own text tower)."""

    width: int
    vocab_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, outputs, images_BHWC, tokens_BL, *, train: bool) -> dict[str, jax.Array]:
        del images_BHWC, train
        project = functools.partial(nn.Dense, self.width, dtype=self.dtype)
        # The text tower is causal: token l knows those up to l.
        query_BLD = project(name="query")(outputs.extra["text_tokens"][:, :-1])
        image_BMD = project(name="image")(outputs.extra["image_tokens"])
        share_BLM = nn.softmax(query_BLD @ image_BMD.swapaxes(1, 2) * self.width**-0.5)
        h_BLD = query_BLD + share_BLM @ image_BMD
        logits_BLV = nn.Dense(self.vocab_size, dtype=self.dtype, name="logits")(h_BLD)
        log_prob_BLV = nn.log_softmax(logits_BLV.astype(jnp.float32))
        next_BL1 = tokens_BL[:, 1:, None]
        return {"next_token": -jnp.take_along_axis(log_prob_BLV, next_BL1, axis=-1)[..., 0]}


def _caption(outputs, batch):
    is_text_BL = batch["tokens"][:, 1:] > 0
    return (outputs.extra["next_token"] * is_text_BL).sum() / is_text_BL.sum()


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(Head):
    """A trained model, of which TEACHER is the path."""

    name: str = "teacher"
    frozen = True

    def module(self, model: ModelConfig, compute: Compute) -> "Teacher":
        return Teacher(teacher().model.config)

    def weights(self) -> dict:
        return {kind: {"clip": part} for kind, part in teacher().variables.items()}


class Teacher(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, outputs, images_BHWC, tokens_BL, *, train: bool) -> dict[str, jax.Array]:
        del outputs, train
        taught = CLIP(self.config, name="clip")(images_BHWC, tokens_BL)
        return {"taught_image": taught.image, "taught_text": taught.text}


@functools.cache
def teacher():
    return load_to_host(os.environ["TEACHER"])  # also while a program is traced


def _distill(outputs, batch):
    """The student's similarities follow the teacher's (arXiv:2309.12314, the affinity mimicking)."""
    del batch
    taught_BB = 100 * outputs.extra["taught_image"] @ outputs.extra["taught_text"].T
    log_prob_BB = nn.log_softmax(outputs.logit_scale * outputs.image @ outputs.text.T)
    return -(nn.softmax(taught_BB) * log_prob_BB).sum(axis=1).mean()


CAPTION = Loss(
    name="caption",
    function=_caption,
    heads=(DecoderConfig(),),
    extra=("next_token",),
    batch=("tokens",),
)
DISTILL = Loss(
    name="distill",
    function=_distill,
    heads=(TeacherConfig(),),
    extra=("taught_image", "taught_text"),
    scalars={"logit_scale": 2.659},
)

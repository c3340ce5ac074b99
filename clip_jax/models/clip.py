"""Two towers, one shared space, and the temperature: the CLIP model of arXiv:2103.00020."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

from clip_jax.config import ModelConfig, PreprocessConfig, ResNetConfig
from clip_jax.models.architectures import model_config
from clip_jax.models.layers import identity
from clip_jax.models.towers.resnet import ResNet
from clip_jax.models.towers.text_transformer import TextTransformer
from clip_jax.models.towers.vision_transformer import VisionTransformer
from clip_jax.numerics import explicit_mesh, first_dim_axes, on_auto_axes


class Outputs(NamedTuple):
    """What a CLIP model says of a batch of pairs."""

    image: jax.Array  # (batch, embedding) float32, unit length
    text: jax.Array  # (batch, embedding) float32, unit length
    logit_scale: jax.Array  # multiplier of the cosines, 1 / temperature
    logit_bias: jax.Array | None  # added to the scaled cosines; None without a bias


class CLIP(nn.Module):
    """A CLIP model, a pure function of its variables.

    `model.init(key, images, tokens)` makes them. `model.apply(variables, images,
    method="encode_image")` and `method="encode_text"` embed, `model.apply(variables, images,
    tokens)` does both and returns `Outputs`.

    Attributes:
      config: the whole architecture.
      constrain: called on the activations (batch, ...) at every block's input; a train step over
        a mesh passes one that pins the batch to its devices. The model knows of no mesh.
    """

    config: ModelConfig
    constrain: Callable[[jax.Array], jax.Array] = identity

    def setup(self):
        cfg = self.config
        dtype = jnp.dtype(cfg.dtype)
        common = {"embed_dim": cfg.embed_dim, "dtype": dtype}
        scanned = {
            "remat": cfg.remat,
            "attention": cfg.attention,
            "unroll": cfg.unroll,
            "constrain": self.constrain,
        }
        if isinstance(cfg.vision, ResNetConfig):
            self.image = ResNet(cfg.vision, remat=cfg.remat, **common)
        else:
            self.image = VisionTransformer(cfg.vision, **common, **scanned)
        self.text = TextTransformer(cfg.text, **common, **scanned)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(cfg.init_logit_scale), ()
        )
        if cfg.init_logit_bias is not None:
            self.logit_bias = self.param(
                "logit_bias", nn.initializers.constant(cfg.init_logit_bias), ()
            )

    def __call__(
        self,
        images_BHWC: jax.Array,
        tokens_BL: jax.Array,
        *,
        train: bool = False,
        frozen: tuple[str, ...] = (),
    ) -> Outputs:
        """Both embeddings of a batch of pairs, the temperature and the bias.

        A tower that `frozen` names ("image", "text") works in training as it does after it.
        """
        return Outputs(
            image=self.encode_image(images_BHWC, train=train and "image" not in frozen),
            text=self.encode_text(tokens_BL, train=train and "text" not in frozen),
            logit_scale=jnp.exp(self.logit_scale),
            logit_bias=None if self.config.init_logit_bias is None else self.logit_bias,
        )

    @nn.nowrap
    def apply(self, variables, *args, method=None, mutable=False, **kwargs):
        """`flax.linen.Module.apply`; inputs may be split over mesh axes of type Explicit."""
        run = functools.partial(super().apply, method=method, mutable=mutable, **kwargs)
        if explicit_mesh((variables, args)) is None:
            return run(variables, *args)
        batch = P(first_dim_axes(args[0]) if args else None)
        specs = batch
        if method is None or method == "__call__":
            bias = None if self.config.init_logit_bias is None else P()
            specs = Outputs(image=batch, text=batch, logit_scale=P(), logit_bias=bias)
        return on_auto_axes(run, specs if mutable is False else (specs, P()), variables, *args)

    def encode_image(self, images_BHWC: jax.Array, *, train: bool = False) -> jax.Array:
        """Embed images.

        Args:
          images_BHWC: (batch, size, size, 3); uint8 pixels, which are normalised here with
            `config.preprocess`, or floats, taken as normalised already.
          train: use patch dropout (rng stream "dropout") and batch statistics, where there are any.

        Returns:
          (batch, embed_dim) float32 of unit length.

        Raises:
          ValueError: for another integer type than uint8, and for floats that are NaN or far from
            every normalised pixel. Traced values are checked under
            `jax.experimental.checkify.checkify` alone, and cost nothing without it.
        """
        size = self.config.vision.image_size
        chex.assert_shape(images_BHWC, (None, size, size, 3))
        check_images(images_BHWC, self.config.preprocess)
        x_BHWC = normalize_pixels(images_BHWC, self.config.preprocess)
        return unit_length(self.image(x_BHWC, train=train))

    def encode_text(self, tokens_BL: jax.Array, *, train: bool = False) -> jax.Array:
        """Embed texts.

        Args:
          tokens_BL: (batch, length) integers, padded, length at most `config.text.context_length`.
          train: as for images.

        Returns:
          (batch, embed_dim) float32 of unit length.

        Raises:
          ValueError: for texts that are too long, and for ids outside of the vocabulary, of traced
            ids under `checkify` alone.
        """
        chex.assert_rank(tokens_BL, 2)
        chex.assert_type(tokens_BL, int)
        check_tokens(tokens_BL, self.config.text.vocab_size)
        longest = self.config.text.context_length
        if tokens_BL.shape[1] > longest:
            raise ValueError(
                f"tokens are {tokens_BL.shape[1]} long and the model's context_length is {longest}: "
                "tokenize with that context_length, or make the model with a longer one"
            )
        return unit_length(self.text(tokens_BL, train=train))


def create_model(
    name: str | ModelConfig,
    *,
    constrain: Callable[[jax.Array], jax.Array] = identity,
    **changes,
) -> CLIP:
    """Make a CLIP model by its name, such as "ViT-B-32" (open_clip's) or "ViT-B/32" (OpenAI's).

    Args:
      name: a name that `clip-jax models` lists, or a `ModelConfig`.
      constrain: see `CLIP`.
      **changes: fields of the `ModelConfig` to change, such as dtype="bfloat16", remat="full",
        image_size=336 or context_length=32.

    Raises:
      ValueError: for an unknown name or field, with the nearest known ones.
    """
    return CLIP(model_config(name, **changes), constrain=constrain)


def check_images(images_BHWC: jax.Array, preprocess: PreprocessConfig):
    """Refuse what is no image: another integer type than uint8, and floats far from any pixel's.

    Values are looked at where they are there: of traced arrays under `checkify` alone.
    """
    if images_BHWC.dtype == jnp.uint8:
        return
    if not jnp.issubdtype(images_BHWC.dtype, jnp.floating):
        raise ValueError(
            f"images are {images_BHWC.dtype}: pass uint8 pixels from 0 to 255, which are normalised "
            "here, or floats that are normalised already"
        )
    pixels_BHWC = images_BHWC * jnp.asarray(preprocess.std) + jnp.asarray(preprocess.mean)
    # Noise and adversarial changes leave the range of pixels, but not by four times its length.
    fits = jnp.all(jnp.abs(pixels_BHWC - 0.5) <= 4.5)  # false for NaN
    _require(
        fits,
        "float images are taken as normalised already, and these hold NaN, or values that no pixel "
        f"from 0 to 255 has with mean {preprocess.mean} and std {preprocess.std}: pass uint8 pixels, "
        "or (pixels / 255 - mean) / std",
    )


def check_tokens(tokens_BL: jax.Array, vocab_size: int):
    """Refuse ids outside of the embedding table, which an index would silently clamp or wrap."""
    fits = jnp.all((tokens_BL >= 0) & (tokens_BL < vocab_size))
    _require(
        fits,
        f"token ids must be from 0 to {vocab_size - 1}, the model's vocabulary: the texts were "
        "tokenized with the tokenizer of another model",
    )


def _require(fits: jax.Array, message: str):
    if isinstance(fits, jax.core.Tracer):
        checkify.debug_check(fits, message)
    elif not fits:
        raise ValueError(message)


def normalize_pixels(images_BHWC: jax.Array, preprocess: PreprocessConfig) -> jax.Array:
    """uint8 pixels to zero mean and unit deviation in float32; floats pass as they are."""
    if images_BHWC.dtype != jnp.uint8:
        return images_BHWC
    mean_C = 255 * jnp.asarray(preprocess.mean, jnp.float32)
    std_C = 255 * jnp.asarray(preprocess.std, jnp.float32)
    return (images_BHWC.astype(jnp.float32) - mean_C) / std_C


def unit_length(x_BE: jax.Array) -> jax.Array:
    """Divide each row by its length, in float32 at least: a dot product is then a cosine."""
    x_BE = x_BE.astype(jnp.promote_types(x_BE.dtype, jnp.float32))
    # The floor keeps the gradient finite for a row of zeros; it changes no other row.
    square_B1 = jnp.maximum(jnp.square(x_BE).sum(axis=-1, keepdims=True), 1e-24)
    return x_BE * jax.lax.rsqrt(square_B1)

"""Two towers, one shared space, and the temperature: the CLIP model of arXiv:2103.00020."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.hardware import target_device
from clip_jax.models.architectures import model_config
from clip_jax.models.layers import identity
from clip_jax.models.tower import Compute, Head
from clip_jax.numerics import explicit_mesh, first_dim_axes, on_auto_axes

MOST_UNROLLED = (
    24  # blocks of a tower that are unrolled without being asked to: more compile for long
)


class Outputs(NamedTuple):
    """What a CLIP model says of a batch of pairs."""

    image: jax.Array  # (batch, embedding) float32, unit length
    text: jax.Array  # (batch, embedding) float32, unit length
    logit_scale: jax.Array  # multiplier of the cosines, 1 / temperature
    logit_bias: jax.Array | None  # added to the scaled cosines; None without a bias
    # (batch, ...) each, by name: what further terms of the loss read. Nobody changes the default.
    extra: dict[str, jax.Array] = {}  # noqa: RUF012


class CLIP(nn.Module):
    """A CLIP model, a pure function of its variables.

    `model.init(key, images, tokens)` makes them. `model.apply(variables, images,
    method="encode_image")` and `method="encode_text"` embed, `model.apply(variables, images,
    tokens)` does both and returns `Outputs`.

    Derivatives are those of reverse mode (`jax.grad`, `jax.vjp`, `jax.jacrev`): the towers' layers have gradient rules
    of their own, so that `jax.jvp`, `jax.jacfwd` and `jax.hessian` raise a TypeError that names
    custom_vjp. A directional derivative is the pullback, `jax.vjp`, of a pullback.

    Attributes:
      config: the whole architecture.
      constrain: called on the activations (batch, ...) at every block's input; a train step over
        a mesh passes one that pins the batch to its devices. The model knows of no mesh.
      heads: what else terms of the loss need; their arrays join `Outputs.extra`.
      checked: the values of traced inputs can be checked by `checkify`. False is for programs that are
        called often: JAX calls one with checks in it through Python, in milliseconds.
    """

    config: ModelConfig
    constrain: Callable[[jax.Array], jax.Array] = identity
    heads: tuple[Head, ...] = ()
    checked: bool = True

    def setup(self):
        cfg = self.config
        compute = compute_of(cfg, self.constrain)
        self.image = cfg.vision.module(cfg.embed_dim, compute)
        self.text = cfg.text.module(cfg.embed_dim, compute)
        for head in self.heads:
            setattr(self, head.name, head.module(cfg, compute))
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

        `extra` has the towers' tokens (batch, tokens, width): "image_tokens" and "text_tokens". A
        tower that `frozen` names ("image", "text") works in training as it does after it.
        """
        image_BE, image_tokens_BLD = self._image(images_BHWC, train and "image" not in frozen)
        text_BE, text_tokens_BLD = self._text(tokens_BL, train and "text" not in frozen)
        outputs = Outputs(
            image=image_BE,
            text=text_BE,
            logit_scale=jnp.exp(self.logit_scale),
            logit_bias=None if self.config.init_logit_bias is None else self.logit_bias,
            extra={"image_tokens": image_tokens_BLD, "text_tokens": text_tokens_BLD},
        )
        extra = dict(outputs.extra)
        for head in self.heads:
            module = getattr(self, head.name)
            found = module(outputs, images_BHWC, tokens_BL, train=train and not head.frozen)
            check_rows(head.name, found, rows=image_BE.shape[0], taken=extra)
            extra |= found
        return outputs._replace(extra=extra)

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
            specs = Outputs(batch, batch, logit_scale=P(), logit_bias=bias, extra=batch)
        return on_auto_axes(run, specs if mutable is False else (specs, P()), variables, *args)

    def encode_image(self, images_BHWC: jax.Array, *, train: bool = False) -> jax.Array:
        """Embed images. Derivatives: reverse mode alone, as `CLIP` says.

        Args:
          images_BHWC: (batch, size, size, 3); uint8 pixels, which are normalised here with
            `config.preprocess`, or floats, taken as normalised already.
          train: use patch dropout (rng stream "dropout") and batch statistics, where there are any.

        Returns:
          (batch, embed_dim) float32 of unit length.

        Raises:
          ValueError: for another integer type than uint8, and for floats that are NaN or far from
            every normalised pixel. Traced values are checked under
            `jax.experimental.checkify.checkify` alone, where the model is `checked`.
        """
        return self._image(images_BHWC, train)[0]

    def encode_text(self, tokens_BL: jax.Array, *, train: bool = False) -> jax.Array:
        """Embed texts. Derivatives: reverse mode alone, as `CLIP` says.

        Args:
          tokens_BL: (batch, length) integers, padded, length at most `config.text.context_length`.
          train: as for images.

        Returns:
          (batch, embed_dim) float32 of unit length.

        Raises:
          ValueError: for texts that are too long, and for ids outside of the vocabulary, of traced
            ids under `checkify` alone. Without it texts with such ids have embeddings of NaN.
        """
        return self._text(tokens_BL, train)[0]

    def _image(self, images_BHWC: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        size = self.config.vision.image_size
        shape = np.shape(images_BHWC)
        if not isinstance(images_BHWC, jax.Array | np.ndarray) or shape[1:] != (size, size, 3):
            raise ValueError(
                f"images must be an array of shape (batch, {size}, {size}, 3), and are "
                f"{type(images_BHWC).__name__} of shape {shape}"
            )
        check_images(images_BHWC, self.config.preprocess, traced=self.checked)
        return self._embed("image", normalize_pixels(images_BHWC, self.config.preprocess), train)

    def _text(self, tokens_BL: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        is_array = isinstance(tokens_BL, jax.Array | np.ndarray)
        if not is_array or not jnp.issubdtype(tokens_BL.dtype, jnp.integer) or tokens_BL.ndim != 2:
            found = f"{tokens_BL.dtype} of shape {tokens_BL.shape}" if is_array else type(tokens_BL)
            raise ValueError(
                f"tokens must be an array of integers (batch, length), and are {found}"
            )
        if not tokens_BL.shape[1]:
            raise ValueError("tokens are 0 long: a text has an end token at least")
        check_tokens(tokens_BL, self.config.text.vocab_size, traced=self.checked)
        longest = self.config.text.context_length
        if tokens_BL.shape[1] > longest:
            raise ValueError(
                f"tokens are {tokens_BL.shape[1]} long and the model's context_length is {longest}: "
                "tokenize with that context_length, or make the model with a longer one"
            )
        return self._embed("text", tokens_BL, train)

    def _embed(self, tower: str, inputs: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """A tower's embedding, of unit length, and its tokens."""
        found = getattr(self, tower)(inputs, train=train)
        expected = (inputs.shape[0], self.config.embed_dim)
        if not isinstance(found, tuple) or len(found) != 2 or found[0].shape != expected:
            raise ValueError(
                f"the {tower} tower {type(self.config.towers[tower]).__name__} must return "
                f"(embedding, tokens), with an embedding of shape {expected}"
            )
        return unit_length(found[0]), found[1]


def check_rows(head: str, found: dict[str, jax.Array], *, rows: int, taken: dict):
    """Refuse what a head returns if it is not one row for each pair, under names of its own."""
    fits = isinstance(found, dict) and all(np.shape(x)[:1] == (rows,) for x in found.values())
    if not fits or found.keys() & taken.keys():
        shapes = jax.tree.map(np.shape, found)
        raise ValueError(
            f"the head {head} must return a dictionary of arrays with {rows} rows, the batch, under "
            f"other names than {', '.join(sorted(taken))}, and returns {shapes}"
        )


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


def compute_of(config: ModelConfig, constrain: Callable = identity) -> Compute:
    """How a model's towers compute."""
    return Compute(
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        attention=config.attention,
        unroll=unroll_of(config),
        constrain=constrain,
    )


def unroll_of(config: ModelConfig) -> int:
    """Blocks in one turn of the loop over a tower's blocks, on the device that is traced for.

    Without a loop XLA for GPUs neither writes stacks of activations nor reads them. Elsewhere a loop
    compiles sooner, and `clip-jax plan` says what it costs.
    """
    if config.unroll is not None:
        return config.unroll
    depth = deepest(config)
    return depth if target_device().platform == "gpu" and depth <= MOST_UNROLLED else 1


def deepest(config: ModelConfig) -> int:
    """Blocks of the tower that has most; 1 where none has any."""
    return max(1, *(tower.depth for tower in config.towers.values()))


def abstract_inputs(config: ModelConfig, batch: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and types of the images and token ids that a model takes; `batch` may be symbolic."""
    size, length = config.vision.image_size, config.text.context_length
    images_BHWC = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return images_BHWC, jax.ShapeDtypeStruct((batch, length), jnp.int32)


def init_variables(model: CLIP, key: jax.Array) -> dict:
    """The variables that an architecture's initialisation draws; also under `jax.eval_shape`.

    Raises:
      ValueError: a tower has variables in other collections than "params" and "batch_stats", which
        no train state would keep.
    """
    inputs = (jnp.zeros(x.shape, x.dtype) for x in abstract_inputs(model.config))
    variables = model.init(key, *inputs)
    if others := variables.keys() - {"params", "batch_stats"}:
        raise ValueError(
            f"{model.config.name} has variables in {', '.join(sorted(others))}: a tower may have "
            "params and batch_stats alone"
        )
    return variables


def sharding_rows(config: ModelConfig, heads: Sequence[Head] = ()) -> tuple[tuple[str, int], ...]:
    """The towers' and the heads' rows for `sharding.shardings`, by paths within the model."""
    parts = config.towers | {head.name: head for head in heads}
    return tuple(
        (rf"\b{name}/.*{pattern}$", axis)
        for name, part in parts.items()
        for pattern, axis in part.sharding_rows
    )


def check_images(images_BHWC: jax.Array, preprocess: PreprocessConfig, *, traced: bool = True):
    """Refuse what is no image: another integer type than uint8, and floats far from any pixel's.

    Values are looked at where they are there: of traced arrays under `checkify` alone, if at all.
    """
    if images_BHWC.dtype == jnp.uint8:
        return
    if not jnp.issubdtype(images_BHWC.dtype, jnp.floating):
        raise ValueError(
            f"images are {images_BHWC.dtype}: pass uint8 pixels from 0 to 255, which are normalised "
            "here, or floats that are normalised already"
        )
    mean_111C, std_111C = jnp.asarray([[[preprocess.mean]]]), jnp.asarray([[[preprocess.std]]])
    pixels_BHWC = images_BHWC * std_111C + mean_111C
    # Noise and adversarial changes leave the range of pixels, but not by four times its length.
    fits = jnp.all(jnp.abs(pixels_BHWC - 0.5) <= 4.5)  # false for NaN
    _require(
        fits,
        "float images are taken as normalised already, and these hold NaN, or values that no pixel "
        f"from 0 to 255 has with mean {preprocess.mean} and std {preprocess.std}: pass uint8 pixels, "
        "or (pixels / 255 - mean) / std",
        traced=traced,
    )


def check_tokens(tokens_BL: jax.Array, vocab_size: int, *, traced: bool = True):
    """Refuse ids outside of the embedding table, which an index would silently clamp or wrap."""
    fits = jnp.all((tokens_BL >= 0) & (tokens_BL < vocab_size))
    _require(
        fits,
        f"token ids must be from 0 to {vocab_size - 1}, the model's vocabulary: the texts were "
        "tokenized with the tokenizer of another model",
        traced=traced,
    )


def _require(fits: jax.Array, message: str, *, traced: bool):
    if isinstance(fits, jax.core.Tracer):
        if traced:
            checkify.debug_check(fits, message)
    elif not fits:
        raise ValueError(message)


def normalize_pixels(images_BHWC: jax.Array, preprocess: PreprocessConfig) -> jax.Array:
    """uint8 pixels to zero mean and unit deviation in float32; floats pass as they are."""
    if images_BHWC.dtype != jnp.uint8:
        return images_BHWC
    mean_111C = 255 * jnp.asarray([[[preprocess.mean]]], jnp.float32)
    std_111C = 255 * jnp.asarray([[[preprocess.std]]], jnp.float32)
    return (images_BHWC.astype(jnp.float32) - mean_111C) / std_111C


def unit_length(x_BE: jax.Array) -> jax.Array:
    """Divide each row by its length, in float32 at least: a dot product is then a cosine."""
    x_BE = x_BE.astype(jnp.promote_types(x_BE.dtype, jnp.float32))
    # The floor keeps the gradient finite for a row of zeros; it changes no other row.
    square_B1 = jnp.maximum(jnp.square(x_BE).sum(axis=-1, keepdims=True), 1e-24)
    return x_BE * jax.lax.rsqrt(square_B1)

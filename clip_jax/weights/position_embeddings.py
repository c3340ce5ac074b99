"""Position embeddings at another image size or context length."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from clip_jax.config import ModelConfig, ResNetConfig

IMAGE = "params/image/position_embedding"
RESNET = "params/image/pool/position_embedding"
TEXT = "params/text/position_embedding"


def image_path(config: ModelConfig) -> str:
    """Where an architecture has its learned image positions."""
    return RESNET if isinstance(config.vision, ResNetConfig) else IMAGE


def as_stored(config: ModelConfig, image_positions: int, text_positions: int) -> ModelConfig:
    """The architecture with the numbers of positions that a file has.

    Raises:
      ValueError: the image positions are no square grid.
    """
    vision = config.vision
    is_resnet = isinstance(vision, ResNetConfig)
    patches = image_positions - (1 if is_resnet else int(vision.class_token))
    grid = math.isqrt(max(patches, 0))
    if grid * grid != patches or not patches:
        raise ValueError(f"{image_positions} image positions make no square grid of {config.name}")
    if is_resnet:
        vision = dataclasses.replace(vision, image_size=32 * grid)
    elif grid != vision.grid:
        vision = dataclasses.replace(vision, image_size=grid * vision.patch_size)
    text = dataclasses.replace(config.text, context_length=text_positions)
    return dataclasses.replace(config, vision=vision, text=text)


def resize(variables: dict, old: ModelConfig, new: ModelConfig) -> dict:
    """Variables of `new` from those of `old`, which differs in image size or context length alone.

    Image positions are resized as an image, bicubic and antialiased; text positions linearly.
    These are open_clip's choices.
    """
    params = dict(variables["params"])
    L = new.text.context_length
    if old.text.context_length != L:
        position_LD = jnp.asarray(params["text"]["position_embedding"])
        shape = (L, position_LD.shape[1])
        position_LD = jax.image.resize(position_LD, shape, "linear", antialias=False)
        params["text"] = params["text"] | {"position_embedding": position_LD}
    old_grid, grid = _grid(old), _grid(new)
    if old_grid != grid and getattr(new.vision, "position", "learned") == "learned":
        is_resnet = isinstance(new.vision, ResNetConfig)
        image = params["image"]
        owner = image["pool"] if is_resnet else image
        extra = 1 if is_resnet else int(new.vision.class_token)
        resized_LD = resize_grid(owner["position_embedding"], extra, old_grid, grid)
        owner = owner | {"position_embedding": resized_LD}
        params["image"] = image | {"pool": owner} if is_resnet else owner
    return variables | {"params": params}


def resize_grid(position_LD: jax.Array, extra: int, old_grid: int, grid: int) -> jax.Array:
    """Resize all but the first `extra` positions from one square grid to another."""
    position_LD = jnp.asarray(position_LD)
    D = position_LD.shape[1]
    position_hwD = position_LD[extra:].reshape(old_grid, old_grid, D)
    position_hwD = jax.image.resize(position_hwD, (grid, grid, D), "cubic", antialias=True)
    return jnp.concatenate([position_LD[:extra], position_hwD.reshape(grid * grid, D)])


def _grid(config: ModelConfig) -> int:
    vision = config.vision
    return vision.image_size // 32 if isinstance(vision, ResNetConfig) else vision.grid

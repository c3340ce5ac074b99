"""How large an architecture is and what it costs, from its config alone."""

import dataclasses

from clip_jax.config import ModelConfig, ResNetConfig, TextConfig, VisionTransformerConfig


def parameter_count(config: ModelConfig) -> int:
    """Parameters of a model, the temperature and the bias included, batch statistics not."""
    vision, text = config.vision, config.text
    if isinstance(vision, ResNetConfig):
        image = _resnet_parameters(vision, config.embed_dim)
    else:
        image = _image_parameters(vision, config.embed_dim)
    tokens = (text.vocab_size + text.context_length) * text.width
    projection = (text.width + text.projection_bias) * config.embed_dim
    head = 2 * text.width + (projection if text.projection else 0)
    scalars = 1 + (config.init_logit_bias is not None)
    return image + tokens + _block_parameters(text) * text.depth + head + scalars


def forward_flops(config: ModelConfig) -> float:
    """Floating-point operations of the forward pass of one image and one text.

    A multiplication and an addition are two. Matrix products and convolutions are counted, and
    nothing else: what a model flops utilisation is stated in.
    """
    return image_flops(config) + text_flops(config)


def training_flops(
    config: ModelConfig, *, frozen: tuple[str, ...] = (), unlocked_blocks: int = 0
) -> float:
    """Floating-point operations of a train step for one image and one text.

    A backward pass costs two forward ones; a tower that `frozen` names ("image", "text") has one
    of its last `unlocked_blocks` alone.
    What rematerialisation and accumulation compute a second time does not count: the figure is of
    the model, so that spending less on the same step shows as a higher utilisation.
    """
    image = image_flops(config) if "image" in frozen else 3 * image_flops(config, train=True)
    total = image + text_flops(config) * (1 if "text" in frozen else 3)
    if unlocked_blocks:
        total += 2 * sum(_last_blocks(config, tower, unlocked_blocks) for tower in frozen)
    return total


def _last_blocks(config: ModelConfig, tower: str, blocks: int) -> float:
    """Forward FLOPs of a tower's last blocks: what it would cost less without them."""
    name, flops = {"image": ("vision", image_flops), "text": ("text", text_flops)}[tower]
    part = getattr(config, name)
    below = dataclasses.replace(part, depth=part.depth - blocks)
    return flops(config) - flops(dataclasses.replace(config, **{name: below}))


def image_flops(config: ModelConfig, *, train: bool = False) -> float:
    """The image tower's share of `forward_flops`; with `train`, after patch dropout."""
    vision, E = config.vision, config.embed_dim
    if isinstance(vision, ResNetConfig):
        return _resnet_flops(vision, E)
    D, patches = vision.width, vision.grid**2
    # As many as `drop_patches` keeps; all of them are embedded before.
    kept = max(1, round(patches * (1 - vision.patch_dropout))) if train else patches
    L = kept + vision.class_token
    flops = 2 * patches * 3 * vision.patch_size**2 * D + _block_flops(vision, L) * vision.depth
    if vision.pool == "map":
        # One query: keys and values of all patches, then the output and an MLP of one vector.
        flops += 2 * (2 * L * D * D + 2 * D * D + 2 * L * D + 2 * D * vision.mlp_width)
    return flops + (2 * D * E if vision.projection else 0)


def text_flops(config: ModelConfig) -> float:
    """The text tower's share of `forward_flops`, every position counted."""
    text = config.text
    blocks = _block_flops(text, text.context_length) * text.depth
    return blocks + (2 * text.width * config.embed_dim if text.projection else 0)


def _block_parameters(tower: VisionTransformerConfig | TextConfig) -> int:
    D, F = tower.width, tower.mlp_width
    norms, attention, mlp = 4 * D, 4 * (D + 1) * D, (D + 1) * F + (F + 1) * D
    return norms + attention + mlp


def _block_flops(tower: VisionTransformerConfig | TextConfig, L: int) -> float:
    D, F = tower.width, tower.mlp_width
    return 2 * (4 * L * D * D + 2 * L * L * D + 2 * L * D * F)


def _image_parameters(vision: VisionTransformerConfig, E: int) -> int:
    D, F = vision.width, vision.mlp_width
    L = vision.grid**2 + vision.class_token
    count = 3 * vision.patch_size**2 * D + _block_parameters(vision) * vision.depth + 2 * D
    count += D * (vision.class_token + vision.patch_bias + 2 * vision.pre_norm)
    count += L * D if vision.position == "learned" else 0
    if vision.pool == "map":
        count += D + 4 * (D + 1) * D + 2 * D + (D + 1) * F + (F + 1) * D
    return count + (D * E if vision.projection else 0)


def _convolutions(vision: ResNetConfig):
    """Size, input and output channels and rows of output of every convolution."""
    width, rows = vision.width, vision.image_size // 2
    yield 3, 3, width // 2, rows
    yield 3, width // 2, width // 2, rows
    yield 3, width // 2, width, rows
    rows, channels = rows // 2, width
    for stage, depth in enumerate(vision.depths):
        inner, outer = width * 2**stage, width * 2 ** (stage + 2)
        for block in range(depth):
            before, rows = rows, rows // 2 if stage and not block else rows
            yield 1, channels, inner, before
            yield 3, inner, inner, before
            yield 1, inner, outer, rows
            if block == 0:
                yield 1, channels, outer, rows
            channels = outer


def _resnet_parameters(vision: ResNetConfig, E: int) -> int:
    D, L = 32 * vision.width, (vision.image_size // 32) ** 2 + 1
    pool = L * D + 3 * (D + 1) * D + (D + 1) * E
    return pool + sum(k * k * i * o + 2 * o for k, i, o, _ in _convolutions(vision))


def _resnet_flops(vision: ResNetConfig, E: int) -> float:
    D, L = 32 * vision.width, (vision.image_size // 32) ** 2 + 1
    pool = 2 * (2 * L * D * D + D * D + 2 * L * D + D * E)
    return pool + sum(2 * k * k * i * o * rows**2 for k, i, o, rows in _convolutions(vision))

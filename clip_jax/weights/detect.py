"""Which architecture a file of OpenAI's or open_clip's names holds, from its shapes."""

import math
from collections.abc import Mapping

from clip_jax.config import ModelConfig
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.tower import name_of
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.mapping import Shape
from clip_jax.weights.openai import depth_of

Figures = dict[str, int | str | bool | None]


def find_architecture(found: Figures, *, source: str, quick_gelu: bool = False) -> str:
    """The name of the known architecture with a file's figures.

    Several may fit: the activation and the preprocessing leave no trace in shapes.

    Raises:
      ValueError: none fits; the message names the closest and where it differs.
    """
    name, difference = closest(found)
    if difference:
        differences = ", ".join(f"{key} {a} instead of {b}" for key, (a, b) in difference.items())
        raise ValueError(
            f"{source} has the shapes of no known architecture: the closest is {name}, "
            f"but the file has {differences}; give model=... a ModelConfig that has them"
        )
    return f"{name}-quickgelu" if quick_gelu and f"{name}-quickgelu" in ARCHITECTURES else name


def closest(found: Figures) -> tuple[str, dict[str, tuple]]:
    """The architecture that shares most figures with a file, and where they differ."""
    best: tuple[str, dict[str, tuple]] | None = None
    for name, config in ARCHITECTURES.items():
        theirs = figures_of_config(config)
        if theirs is None:
            continue
        difference = {
            key: (found[key], theirs.get(key))
            for key in sorted(found)
            if found[key] != theirs.get(key)
        }
        if best is None or len(difference) < len(best[1]):
            best = name, difference
    assert best is not None
    return best


def figures_of_config(config: ModelConfig) -> Figures | None:
    """The figures of an architecture that shapes tell; None: no other library has its towers."""
    image_figures, text = IMAGE_FIGURES.get(name_of(config.vision)), config.text
    if image_figures is None or name_of(text) != "text_transformer":
        return None
    figures: Figures = {
        "embed_dim": config.embed_dim,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "text width": text.width,
        "text depth": text.depth,
        "text mlp_width": text.mlp_width,
    }
    return figures | image_figures(config.vision)


def _resnet(vision: ResNetConfig) -> Figures:
    return {
        "kind": "ResNet",
        "image width": vision.width,
        "image depth": " ".join(map(str, vision.depths)),
        "grid": vision.grid,
    }


def _vision_transformer(vision: VisionTransformerConfig) -> Figures:
    return {
        "kind": "SigLIP" if vision.pool == "map" else "ViT",
        "image width": vision.width,
        "image depth": vision.depth,
        "image mlp_width": vision.mlp_width,
        "patch_size": vision.patch_size,
        "grid": vision.grid,
        "pre_norm": vision.pre_norm,
    }


IMAGE_FIGURES = {"resnet": _resnet, "vision_transformer": _vision_transformer}


def figures_of_file(shapes: Mapping[str, Shape]) -> Figures:
    """The same figures, from a file's tensors; those that no tensor gives are absent."""

    def size(name: str, axis: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if axis < len(shape) else None

    names = list(shapes)
    text = "text." if "text.token_embedding.weight" in shapes else ""
    embed_dim = (
        size(f"{text}text_projection.weight", 0)
        or size(f"{text}text_projection", 1)
        or size(f"{text}token_embedding.weight", 1)  # without a projection
    )
    figures: Figures = {
        "embed_dim": embed_dim,
        "context_length": size(f"{text}positional_embedding", 0),
        "vocab_size": size(f"{text}token_embedding.weight", 0),
        "text width": size(f"{text}token_embedding.weight", 1),
        "text depth": depth_of(names, f"{text}transformer.resblocks."),
        "text mlp_width": size(f"{text}transformer.resblocks.0.mlp.c_fc.weight", 0),
    }
    if "visual.layer1.0.conv1.weight" in shapes:
        depths = [depth_of(names, f"visual.layer{i}.") for i in (1, 2, 3, 4)]
        positions = size("visual.attnpool.positional_embedding", 0) or 1
        return figures | {
            "kind": "ResNet",
            "image width": size("visual.layer1.0.conv1.weight", 0),
            "image depth": " ".join(map(str, depths)),
            "grid": math.isqrt(positions - 1),
        }
    if "visual.trunk.pos_embed" in shapes:
        blocks, patches, mlp = "visual.trunk.blocks.", "visual.trunk.patch_embed.proj.weight", "fc1"
        positions = size("visual.trunk.pos_embed", 1) or 0
    else:
        blocks, patches, mlp = "visual.transformer.resblocks.", "visual.conv1.weight", "c_fc"
        positions = (size("visual.positional_embedding", 0) or 1) - 1
    return figures | {
        "kind": "SigLIP" if "visual.trunk.pos_embed" in shapes else "ViT",
        "image width": size(patches, 0),
        "image depth": depth_of(names, blocks),
        "image mlp_width": size(f"{blocks}0.mlp.{mlp}.weight", 0),
        "patch_size": size(patches, 2),
        "grid": math.isqrt(positions),
        "pre_norm": "visual.ln_pre.weight" in shapes,
    }


def figures_of_npz(shapes: Mapping[str, Shape]) -> Figures:
    """The same figures of SigLIP, from big_vision's names."""
    root = "params/" if any(name.startswith("params/") for name in shapes) else ""

    def shape(name: str) -> Shape:
        return (*shapes.get(root + name, ()), 0, 0, 0, 0)

    def depth(prefix: str) -> int:
        scanned = shapes.get(f"{root}{prefix}/encoderblock/LayerNorm_0/scale")
        if scanned:
            return scanned[0]
        start = f"{root}{prefix}/encoderblock_"
        return len({name.split("/encoderblock_")[1].split("/")[0] for name in shapes
                    if name.startswith(start)})  # fmt: skip

    patches = shape("img/embedding/kernel")
    return {
        "kind": "SigLIP",
        "embed_dim": shape("txt/head/kernel")[1],
        "context_length": shape("txt/pos_embedding")[1],
        "vocab_size": shape("txt/Embed_0/embedding")[0],
        "text width": shape("txt/Embed_0/embedding")[1],
        "text depth": depth("txt/Encoder_0"),
        "image width": patches[3],
        "image depth": depth("img/Transformer"),
        "image mlp_width": shape("img/MAPHead_0/MlpBlock_0/Dense_0/kernel")[1],
        "patch_size": patches[0],
        "grid": math.isqrt(max(0, shape("img/pos_embedding")[1])),
        "pre_norm": False,
    }

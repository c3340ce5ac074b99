"""The known architectures, a few figures each, under open_clip's names."""

import dataclasses
import difflib

from clip_jax import registry
from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TANH = {"activation": "gelu_tanh"}


def image(width: int, depth: int, patch_size: int, image_size: int = 224, **more) -> dict:
    """A vision transformer with heads of 64 numbers and a fourfold MLP, unless `more` differs."""
    sizes = {"width": width, "depth": depth, "patch_size": patch_size, "image_size": image_size}
    return sizes | {"heads": width // 64, "mlp_width": 4 * width} | more


def text(width: int, depth: int = 12, **more) -> dict:
    """A text tower with heads of 64 numbers and a fourfold MLP, unless `more` differs."""
    return {"width": width, "depth": depth, "heads": width // 64, "mlp_width": 4 * width} | more


def clip(embed_dim: int, vision: dict, text: dict, **more) -> ModelConfig:
    """OpenAI's form: a class token, one LayerNorm before the blocks, causal text."""
    return ModelConfig(
        embed_dim=embed_dim,
        vision=VisionTransformerConfig(**vision),
        text=TextConfig(**text),
        **more,
    )


def resnet(
    embed_dim: int,
    width: int,
    depths: tuple[int, int, int, int],
    image_size: int,
    text: dict,
    **more,
) -> ModelConfig:
    """OpenAI's modified ResNet."""
    return ModelConfig(
        embed_dim=embed_dim,
        vision=ResNetConfig(width=width, depths=depths, image_size=image_size, heads=width // 2),
        text=TextConfig(**text),
        **more,
    )


def quick(config: ModelConfig) -> ModelConfig:
    """The same with the faster, rougher GELU that OpenAI's weights were trained with."""
    return with_activation(config, "quick_gelu")


def with_activation(config: ModelConfig, activation: str) -> ModelConfig:
    """The same with another activation in the towers that have such a setting."""
    vision = config.vision.with_known(activation=activation)
    text = config.text.with_known(activation=activation)
    return dataclasses.replace(config, vision=vision, text=text)


def clipa(embed_dim: int, vision: dict, text: dict) -> ModelConfig:
    """CLIPA (arXiv:2305.07017): mean pooling, short bidirectional text of BERT's words."""
    return clip(
        embed_dim,
        vision | {"pool": "mean", "pool_before_norm": True, "pre_norm": False},
        text | {"context_length": 32, "vocab_size": 32_000, "causal": False, "pool": "last"},
        preprocess=PreprocessConfig(
            mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", resize_mode="squash"
        ),
        tokenizer="huggingface",
    )


def siglip(vision: dict, text: dict, vocab_size: int = 32_000, context: int = 64) -> ModelConfig:
    """SigLIP (arXiv:2303.15343): attention pooling, bidirectional text, sigmoid loss."""
    pooled = {"class_token": False, "pool": "map", "pre_norm": False, "projection": False}
    last = {"causal": False, "pool": "last", "projection_bias": text.get("projection", True)}
    sizes = {"context_length": context, "vocab_size": vocab_size}
    return clip(
        vision["width"],
        vision | pooled | {"patch_bias": True, "norm_epsilon": 1e-6},
        text | sizes | last | {"norm_epsilon": 1e-6},
        preprocess=PreprocessConfig(mean=HALF, std=HALF, resize_mode="squash"),
        tokenizer="siglip",
        init_logit_scale=2.302585092994046,  # ln 10
        init_logit_bias=-10.0,
    )


def siglip2(vision: dict, text: dict) -> ModelConfig:
    """SigLIP 2 (arXiv:2502.14786) at a fixed resolution: Gemma's vocabulary, tanh GELU in text."""
    return siglip(vision, text | TANH, vocab_size=256_000)


def worldwide(config: ModelConfig, vocab_size: int, end_id: int, **more) -> ModelConfig:
    """MetaCLIP 2 (arXiv:2507.22062): a multilingual vocabulary, read at its own end token."""
    text = dataclasses.replace(config.text, vocab_size=vocab_size, pool="eos", end_id=end_id)
    return dataclasses.replace(config, text=text, **more)


H_14 = image(1280, 32, 14, heads=16)
G_14 = image(1408, 40, 14, heads=16, mlp_width=6144)
E_14 = image(1792, 56, 14, heads=16, mlp_width=15_360)
BIGG_14 = image(1664, 48, 14, heads=16, mlp_width=8192)
SO400M = {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304}
SO400M_14, SO400M_16 = image(1152, 27, 14) | SO400M, image(1152, 27, 16) | SO400M | TANH
GIANT_16 = image(1536, 40, 16, heads=16) | TANH


def at(vision: dict, image_size: int) -> dict:
    return vision | {"image_size": image_size}


ARCHITECTURES: dict[str, ModelConfig] = {
    # For tests and laptops: 64-pixel images, short captions, SentencePiece tokens.
    "ViT-tiny-16-64": clip(
        64,
        image(128, 4, 16, 64, heads=4),
        text(128, 3, heads=4, context_length=32, vocab_size=512),
        tokenizer="sentencepiece",
    ),
    # A convolution knows a shape wherever it lies: it learns in minutes what takes a small ViT an hour.
    "RN-tiny-64": resnet(
        64, 16, (1, 1, 1, 1), 64,
        text(128, 2, heads=4, context_length=24, vocab_size=512), tokenizer="sentencepiece",
    ),
    "ViT-test": clip(
        16,
        image(32, 2, 8, 16, heads=2, mlp_width=64),
        text(32, 2, heads=2, mlp_width=64, context_length=8, vocab_size=64),
        tokenizer="sentencepiece",
    ),
    "RN-test": resnet(
        16, 8, (1, 1, 1, 1), 32,
        text(32, 2, heads=2, mlp_width=64, context_length=8, vocab_size=64),
    ),
    # OpenAI's nine are these with "-quickgelu".
    "RN50": resnet(1024, 64, (3, 4, 6, 3), 224, text(512)),
    "RN101": resnet(512, 64, (3, 4, 23, 3), 224, text(512)),
    "RN50x4": resnet(640, 80, (4, 6, 10, 6), 288, text(640)),
    "RN50x16": resnet(768, 96, (6, 8, 18, 8), 384, text(768)),
    "RN50x64": resnet(1024, 128, (3, 15, 36, 10), 448, text(1024)),
    "ViT-B-32": clip(512, image(768, 12, 32), text(512)),
    "ViT-B-16": clip(512, image(768, 12, 16), text(512)),
    "ViT-L-14": clip(768, image(1024, 24, 14), text(768)),
    "ViT-L-14-336": clip(768, image(1024, 24, 14, 336), text(768)),
    # open_clip's other vision transformers.
    "ViT-S-32": clip(384, image(384, 12, 32), text(384)),
    "ViT-S-32-alt": clip(256, image(384, 12, 32), text(256, 10)),
    "ViT-S-16": clip(384, image(384, 12, 16), text(384)),
    "ViT-S-16-alt": clip(256, image(384, 12, 16), text(256, 10)),
    "ViT-M-32": clip(512, image(512, 12, 32), text(512)),
    "ViT-M-32-alt": clip(384, image(512, 12, 32), text(384)),
    "ViT-M-16": clip(512, image(512, 12, 16), text(512)),
    "ViT-B-32-256": clip(512, image(768, 12, 32, 256), text(512)),
    "ViT-B-32-plus-256": clip(640, image(896, 12, 32, 256), text(640)),
    "ViT-B-16-plus": clip(640, image(896, 12, 16), text(640)),
    "ViT-B-16-plus-240": clip(640, image(896, 12, 16, 240), text(640)),
    "ViT-L-16": clip(768, image(1024, 24, 16), text(768)),
    "ViT-L-16-320": clip(768, image(1024, 24, 16, 320), text(768)),
    "ViT-L-14-280": clip(768, image(1024, 24, 14, 280), text(768)),
    "ViT-H-16": clip(1024, image(1280, 32, 16, heads=16), text(1024, 24)),
    "ViT-H-14": clip(1024, H_14, text(1024, 24)),
    "ViT-H-14-378": clip(1024, at(H_14, 378), text(1024, 24)),
    "ViT-g-14": clip(1024, G_14, text(1024, 24)),
    "ViT-e-14": clip(1280, E_14, text(1280, 36)),
    "ViT-bigG-14": clip(1280, BIGG_14, text(1280, 32)),
    # CLIPA's.
    "ViT-L-14-CLIPA": clipa(768, image(1024, 24, 14), text(768)),
    "ViT-L-14-CLIPA-336": clipa(768, image(1024, 24, 14, 336), text(768)),
    "ViT-H-14-CLIPA": clipa(1024, H_14, text(1024, 24)),
    "ViT-H-14-CLIPA-336": clipa(1024, at(H_14, 336), text(1024, 24)),
    "ViT-bigG-14-CLIPA": clipa(1280, BIGG_14, text(1280, 32)),
    "ViT-bigG-14-CLIPA-336": clipa(1280, at(BIGG_14, 336), text(1280, 32)),
    # SigLIP's.
    "ViT-B-16-SigLIP": siglip(image(768, 12, 16), text(768)),
    "ViT-B-16-SigLIP-256": siglip(image(768, 12, 16, 256), text(768)),
    "ViT-B-16-SigLIP-i18n-256": siglip(image(768, 12, 16, 256), text(768), 250_000),
    "ViT-B-16-SigLIP-384": siglip(image(768, 12, 16, 384), text(768)),
    "ViT-B-16-SigLIP-512": siglip(image(768, 12, 16, 512), text(768)),
    "ViT-L-16-SigLIP-256": siglip(image(1024, 24, 16, 256), text(1024, 24)),
    "ViT-L-16-SigLIP-384": siglip(image(1024, 24, 16, 384), text(1024, 24)),
    "ViT-SO400M-14-SigLIP": siglip(SO400M_14, text(1152) | SO400M, context=16),
    "ViT-SO400M-14-SigLIP-378": siglip(at(SO400M_14, 378), text(1152) | SO400M),
    "ViT-SO400M-14-SigLIP-384": siglip(at(SO400M_14, 384), text(1152) | SO400M),
    "ViT-SO400M-16-SigLIP-i18n-256": siglip(
        at(SO400M_16, 256), text(1152) | SO400M | {"projection": False}, 250_000
    ),
    # SigLIP 2's of a fixed resolution.
    "ViT-B-32-SigLIP2-256": siglip2(image(768, 12, 32, 256) | TANH, text(768)),
    "ViT-B-16-SigLIP2": siglip2(image(768, 12, 16), text(768)),
    "ViT-B-16-SigLIP2-256": siglip2(image(768, 12, 16, 256), text(768)),
    "ViT-B-16-SigLIP2-384": siglip2(image(768, 12, 16, 384), text(768)),
    "ViT-B-16-SigLIP2-512": siglip2(image(768, 12, 16, 512), text(768)),
    "ViT-L-16-SigLIP2-256": siglip2(image(1024, 24, 16, 256), text(1024, 24)),
    "ViT-L-16-SigLIP2-384": siglip2(image(1024, 24, 16, 384), text(1024, 24)),
    "ViT-L-16-SigLIP2-512": siglip2(image(1024, 24, 16, 512) | TANH, text(1024, 24)),
    "ViT-SO400M-14-SigLIP2": siglip2(SO400M_14, text(1152) | SO400M),
    "ViT-SO400M-14-SigLIP2-378": siglip2(at(SO400M_14, 378), text(1152) | SO400M),
    "ViT-SO400M-16-SigLIP2-256": siglip2(at(SO400M_16, 256), text(1152) | SO400M),
    "ViT-SO400M-16-SigLIP2-384": siglip2(at(SO400M_16, 384), text(1152) | SO400M),
    "ViT-SO400M-16-SigLIP2-512": siglip2(at(SO400M_16, 512), text(1152) | SO400M),
    "ViT-gopt-16-SigLIP2-256": siglip2(at(GIANT_16, 256), text(1152) | SO400M),
    "ViT-gopt-16-SigLIP2-384": siglip2(at(GIANT_16, 384), text(1152) | SO400M),
}  # fmt: skip
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64",
          "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")  # fmt: skip
for _name in (*OPENAI, "ViT-H-14", "ViT-H-14-378", "ViT-bigG-14"):
    ARCHITECTURES[f"{_name}-quickgelu"] = quick(ARCHITECTURES[_name])
# MetaCLIP 2's: XLM-V's vocabulary, or mT5's under SigLIP's cleaning.
XLM_V = {"vocab_size": 901_629, "end_id": 2, "tokenizer": "huggingface"}
MT5 = {"vocab_size": 250_100, "end_id": 1, "tokenizer": "siglip"}
for _name, _words in (("ViT-L-14", MT5), ("ViT-H-14", XLM_V), ("ViT-bigG-14", XLM_V)):
    _config = ARCHITECTURES[f"{_name}-worldwide"] = worldwide(ARCHITECTURES[_name], **_words)
    if _name != "ViT-L-14":
        ARCHITECTURES[f"{_name}-worldwide-378"] = dataclasses.replace(
            _config,
            vision=dataclasses.replace(_config.vision, image_size=378),
            preprocess=PreprocessConfig(resize_mode="squash"),
        )
for _name in ("ViT-L-14-worldwide", "ViT-H-14-worldwide"):
    ARCHITECTURES[f"{_name}-quickgelu"] = quick(ARCHITECTURES[_name])
for _name, _config in ARCHITECTURES.items():
    ARCHITECTURES[_name] = dataclasses.replace(_config, name=_name)


def model_config(name: str | ModelConfig, **changes) -> ModelConfig:
    """The `ModelConfig` of a named architecture, with fields of it or of its towers changed.

    Args:
      name: in `ARCHITECTURES`, or `package.module:NAME` of a `ModelConfig`, or the config itself.
      **changes: fields of the `ModelConfig`, or of the one tower that has such a field.

    Raises:
      ValueError: for an unknown name or field, with the nearest known ones.
    """
    config = name if isinstance(name, ModelConfig) else _named(name)
    owners = {"vision": config.vision.fields(), "text": config.text.fields()}
    parts = {"vision": {}, "text": {}, "model": {}}
    for key, value in changes.items():
        parts[_owner(config, key, owners)][key] = value
    return dataclasses.replace(
        config,
        **{
            side: dataclasses.replace(getattr(config, side), **parts[side])
            for side in owners
            if parts[side]
        },
        **parts["model"],
    )


def _named(name: str) -> ModelConfig:
    known = name.replace("/", "-").replace("@336px", "-336")
    if known in ARCHITECTURES:
        return ARCHITECTURES[known]
    if registry.is_import_path(name):
        found = registry.resolve("model.name", name, ARCHITECTURES)
        if not isinstance(found, ModelConfig):
            raise ValueError(f"model.name={name!r} is {found!r}, not a ModelConfig")
        return dataclasses.replace(found, name=name)
    near = difflib.get_close_matches(known, ARCHITECTURES, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else "`clip-jax models` lists them"
    raise ValueError(f'there is no architecture "{name}"; {hint}')


def _owner(config: ModelConfig, key: str, owners: dict[str, dict]) -> str:
    own = [field.name for field in dataclasses.fields(config)]
    if key in own:
        return "model"
    sides = [side for side, fields in owners.items() if key in fields]
    if len(sides) == 1:
        return sides[0]
    if sides:
        raise ValueError(
            f'both towers of {config.name} have a setting "{key}": change vision=... or text=...'
        )
    known = own + [name for fields in owners.values() for name in fields]
    near = difflib.get_close_matches(key, known, n=3) or own
    raise ValueError(f'{config.name} has no setting "{key}"; nearest: {", ".join(near)}')

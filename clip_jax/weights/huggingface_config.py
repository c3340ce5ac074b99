"""Hugging Face's config.json of CLIPModel, MetaClip2Model and SiglipModel, read and written."""

import math
from typing import Any

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.config_values import MOST_LAYERS, Section
from clip_jax.weights.huggingface import check_towers

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
# Kinds that look like these and are none; what a message says of them.
RELATIVES = {
    "clip_text_model": "a text tower alone",
    "clip_vision_model": "an image tower alone",
    "siglip_text_model": "a text tower alone",
    "siglip_vision_model": "an image tower alone",
    "siglip2": "SigLIP 2 of variable resolution (NaFlex)",
}


def read_config(content: dict[str, Any], *, source: str, name: str) -> ModelConfig:
    """The architecture that a config.json describes.

    Raises:
      ValueError: it describes another kind of model, or a variant that this package has not, or
        is not well formed; the message names the key.
    """
    whole = Section(content, source)
    kind = str(whole.get("model_type"))
    if kind not in DEFAULTS:
        what = f", {RELATIVES[kind]}" if kind in RELATIVES else ""
        raise ValueError(
            f'{source} is of model_type "{kind}"{what}; supported are {", ".join(DEFAULTS)}, each '
            "with both of its towers"
        )
    vision, text = (
        _part(whole, kind, part, defaults)
        for part, defaults in zip(("vision", "text"), DEFAULTS[kind])
    )
    try:
        if kind == "siglip":
            return _siglip_config(vision, text, name)
        return _clip_config(kind, whole, vision, text, name)
    except ValueError as error:
        raise (
            error if str(error).startswith(source) else ValueError(f"{source}: {error}")
        ) from error


def _part(whole: Section, kind: str, part: str, defaults: dict) -> Section:
    """A tower's settings.

    Old files have a *_config_dict besides. In transformers it replaces *_config, also with the default
    values of what it leaves out; SigLIP has no such key there.
    """
    old, new = f"{part}_config_dict", f"{part}_config"
    key = old if kind != "siglip" and old in whole else new
    return Section(defaults | whole.section(key).content, f"{whole.where}: {key}")


def _pool(kind: str, text: Section) -> dict:
    """Where the text is read: in CLIP's files 2 means the largest id, by an old mistake."""
    end, last = text.integer("eos_token_id"), text.integer("vocab_size") - 1
    if kind == "clip" and end in (2, last):
        return {"pool": "argmax"}
    return {"pool": "eos", "end_id": end}


def _clip_config(
    kind: str, whole: Section, vision: Section, text: Section, name: str
) -> ModelConfig:
    is_openais = kind == "clip" and text.integer("vocab_size") == 49_408
    return ModelConfig(
        name=name,
        embed_dim=whole.integer("projection_dim", 512),
        vision=VisionTransformerConfig(**_tower(vision), **_image_fields(vision)),
        text=TextConfig(**_tower(text), **_text_fields(text), **_pool(kind, text)),
        preprocess=PreprocessConfig(crop_offset="floor"),
        tokenizer="clip" if is_openais else "huggingface",
        init_logit_scale=whole.number("logit_scale_init_value", math.log(1 / 0.07)),
    )


def _siglip_config(vision: Section, text: Section, name: str) -> ModelConfig:
    if not vision.flag("vision_use_head", True):
        raise vision.error("vision_use_head", "true (the pooled vector is the image embedding)")
    return ModelConfig(
        name=name,
        embed_dim=text.integer("projection_size", text.get("hidden_size")),
        vision=VisionTransformerConfig(
            **_tower(vision),
            **_image_fields(vision),
            class_token=False,
            pool="map",
            pre_norm=False,
            patch_bias=True,
            projection=False,
        ),
        text=TextConfig(
            **_tower(text), **_text_fields(text), causal=False, pool="last", projection_bias=True
        ),
        preprocess=PreprocessConfig(mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
        tokenizer="siglip",
        init_logit_scale=math.log(10),
        init_logit_bias=-10.0,
    )


CLIP_TOWER = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
CLIP_VISION = CLIP_TOWER | {
    "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
    "image_size": 224, "patch_size": 32,
}  # fmt: skip
CLIP_TEXT = CLIP_TOWER | {
    "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048,
    "max_position_embeddings": 77, "vocab_size": 49_408, "eos_token_id": 49_407,
}  # fmt: skip
SIGLIP_TOWER = {
    "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
    "num_hidden_layers": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
SIGLIP_VISION = SIGLIP_TOWER | {"image_size": 224, "patch_size": 16}
SIGLIP_TEXT = SIGLIP_TOWER | {"max_position_embeddings": 64, "vocab_size": 32_000}
DEFAULTS = {
    "clip": (CLIP_VISION, CLIP_TEXT),
    "metaclip_2": (CLIP_VISION, CLIP_TEXT),
    "siglip": (SIGLIP_VISION, SIGLIP_TEXT),
}


def _tower(tower: Section) -> dict:
    return {
        "width": tower.integer("hidden_size"),
        "depth": tower.integer("num_hidden_layers", most=MOST_LAYERS),
        "heads": tower.integer("num_attention_heads"),
        "mlp_width": tower.integer("intermediate_size"),
        "activation": tower.choice("hidden_act", None, ACTIVATIONS),
        "norm_epsilon": tower.number("layer_norm_eps"),
    }


def _image_fields(vision: Section) -> dict:
    vision.choice("num_channels", 3, {3: 3})
    return {"image_size": vision.square("image_size"), "patch_size": vision.square("patch_size")}


def _text_fields(text: Section) -> dict:
    return {
        "context_length": text.integer("max_position_embeddings"),
        "vocab_size": text.integer("vocab_size"),
    }


# ------------------------------------------------------------------------------------ writing


def write_config(
    config: ModelConfig, *, end_id: int | None = None, pad_id: int | None = None
) -> dict[str, Any]:
    """The config.json of an architecture.

    Args:
      config: the architecture.
      end_id: the tokenizer's end token, at which CLIPModel reads its text tower; None: the last
        id of the vocabulary.
      pad_id: the tokenizer's padding; None: that of the released models.

    Raises:
      ValueError: transformers has no such model; the message says what it lacks.
    """
    check_exportable(config)
    is_siglip = config.vision.pool == "map"
    # CLIPModel takes the end token 2 for the largest id.
    is_metaclip = config.text.pool == "eos" and config.text.end_id == 2
    kind = "siglip" if is_siglip else "metaclip_2" if is_metaclip else "clip"
    if config.text.pool == "eos":
        end_id = config.text.end_id
    vision = _write_tower(config.vision) | {
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "model_type": f"{kind}_vision_model",
    }
    text = _write_tower(config.text) | {
        "max_position_embeddings": config.text.context_length,
        "vocab_size": config.text.vocab_size,
        "eos_token_id": (1 if is_siglip else config.text.vocab_size - 1)
        if end_id is None
        else end_id,
        "model_type": f"{kind}_text_model",
    }
    if is_siglip:
        is_gemma = config.text.vocab_size == 256_000  # SigLIP 2's, which pads with 0
        text |= {"projection_size": config.embed_dim, "pad_token_id": 0 if is_gemma else 1}
        text |= {"bos_token_id": None}
    else:
        text |= {"bos_token_id": config.text.vocab_size - 2, "pad_token_id": 0}
        vision["projection_dim"] = text["projection_dim"] = config.embed_dim
    if pad_id is not None:
        text["pad_token_id"] = pad_id
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        **({} if is_siglip else {"projection_dim": config.embed_dim}),
        **({} if is_siglip else {"logit_scale_init_value": config.init_logit_scale}),
        "vision_config": vision,
        "text_config": text,
    }


ARCHITECTURES = {"siglip": "SiglipModel", "clip": "CLIPModel", "metaclip_2": "MetaClip2Model"}


def check_exportable(config: ModelConfig):
    """Compare an architecture with the two that transformers has."""
    check_towers(config)
    is_siglip = config.vision.pool == "map"
    image, text = (SIGLIP_IMAGE, SIGLIP_WORDS) if is_siglip else (CLIP_IMAGE, CLIP_WORDS)
    for tower, required in ((config.vision, image), (config.text, text)):
        for key, value in required.items():
            if getattr(tower, key) != value:
                raise ValueError(
                    f"transformers has no {'SiglipModel' if is_siglip else 'CLIPModel'} with "
                    f"{key}={getattr(tower, key)!r}: export to open_clip instead"
                )
    if not is_siglip and config.text.pool == "last":
        raise ValueError(
            'transformers has no CLIPModel with pool="last": export to open_clip instead'
        )
    if (config.init_logit_bias is not None) != is_siglip:
        raise ValueError("in transformers SiglipModel alone has a bias, and always has one")


CLIP_IMAGE = {
    "class_token": True, "pool": "class", "pre_norm": True, "patch_bias": False,
    "projection": True, "position": "learned",
}  # fmt: skip
CLIP_WORDS = {"causal": True, "projection": True, "projection_bias": False}
SIGLIP_IMAGE = {
    "class_token": False, "pre_norm": False, "patch_bias": True, "projection": False,
    "position": "learned",
}  # fmt: skip
SIGLIP_WORDS = {"causal": False, "pool": "last", "projection": True, "projection_bias": True}


def _write_tower(tower: VisionTransformerConfig | TextConfig) -> dict:
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_width,
        "hidden_act": {
            ours: theirs for theirs, ours in ACTIVATIONS.items() if theirs != "gelu_new"
        }[tower.activation],
        "layer_norm_eps": tower.norm_epsilon,
    }

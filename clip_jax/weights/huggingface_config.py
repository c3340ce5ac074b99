"""Hugging Face's config files of CLIPModel and SiglipModel, read and written."""

import dataclasses
import math
from typing import Any

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.huggingface import check_towers

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def read_config(content: dict[str, Any], *, source: str, name: str) -> ModelConfig:
    """The architecture that a config.json describes.

    Raises:
      ValueError: it describes another kind of model, or a variant that this package has not.
    """
    kind = content.get("model_type")
    if kind not in ("clip", "siglip"):
        raise ValueError(f'{source} is of model_type "{kind}"; known are "clip" and "siglip"')
    # Old files keep what differs from the defaults in *_config_dict.
    vision = CLIP_VISION | content.get("vision_config", {})
    text = CLIP_TEXT | content.get("text_config", {})
    if kind == "siglip":
        vision = SIGLIP_VISION | content.get("vision_config", {})
        text = SIGLIP_TEXT | content.get("text_config", {})
    else:
        vision |= content.get("vision_config_dict") or {}
        text |= content.get("text_config_dict") or {}
    try:
        if kind == "clip":
            _check_end(text, source)
            return _clip_config(content, vision, text, name)
        return _siglip_config(vision, text, name)
    except KeyError as error:
        raise ValueError(f"{source} has a hidden_act that is not known: {error}") from error


def _check_end(text: dict, source: str):
    # 2 stands for the largest id, by an old mistake that transformers keeps alive.
    end, last = text["eos_token_id"], text["vocab_size"] - 1
    if end not in (2, last):
        raise ValueError(
            f"{source} reads its text at token {end}, and this package at the largest id, {last}"
        )


def _clip_config(content: dict, vision: dict, text: dict, name: str) -> ModelConfig:
    return ModelConfig(
        name=name,
        embed_dim=content.get("projection_dim", 512),
        vision=VisionTransformerConfig(**_tower(vision), **_image_fields(vision)),
        text=TextConfig(**_tower(text), **_text_fields(text)),
        tokenizer="clip" if text["vocab_size"] == 49_408 else "huggingface",
        init_logit_scale=content.get("logit_scale_init_value", math.log(1 / 0.07)),
    )


def _siglip_config(vision: dict, text: dict, name: str) -> ModelConfig:
    if not vision.get("vision_use_head", True):
        raise ValueError("a SigLIP without its attention pooling has no image embedding")
    return ModelConfig(
        name=name,
        embed_dim=text.get("projection_size") or text["hidden_size"],
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


def _tower(tower: dict) -> dict:
    return {
        "width": tower["hidden_size"],
        "depth": tower["num_hidden_layers"],
        "heads": tower["num_attention_heads"],
        "mlp_width": tower["intermediate_size"],
        "activation": ACTIVATIONS[tower["hidden_act"]],
        "norm_epsilon": tower["layer_norm_eps"],
    }


def _image_fields(vision: dict) -> dict:
    return {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}


def _text_fields(text: dict) -> dict:
    return {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"]}


def read_preprocess(content: dict[str, Any], default: PreprocessConfig) -> PreprocessConfig:
    """What a preprocessor_config.json says; `default` for what it leaves open."""
    size = content.get("size", {})
    shortest = isinstance(size, int) or "shortest_edge" in size
    return dataclasses.replace(
        default,
        mean=tuple(content.get("image_mean", default.mean)),
        std=tuple(content.get("image_std", default.std)),
        interpolation=FILTERS.get(content.get("resample"), default.interpolation),
        resize_mode=("shortest" if shortest else "squash") if size else default.resize_mode,
    )


# ------------------------------------------------------------------------------------ writing


def write_config(config: ModelConfig, *, end_id: int | None = None) -> dict[str, Any]:
    """The config.json of an architecture.

    Args:
      config: the architecture.
      end_id: the tokenizer's end token, at which CLIPModel reads its text tower; None: the last
        id of the vocabulary.

    Raises:
      ValueError: transformers has no such model; the message says what it lacks.
    """
    check_exportable(config)
    is_siglip = config.vision.pool == "map"
    kind = "siglip" if is_siglip else "clip"
    vision = _write_tower(config.vision) | {
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
        "model_type": f"{kind}_vision_model",
    }
    text = _write_tower(config.text) | {
        "max_position_embeddings": config.text.context_length,
        "vocab_size": config.text.vocab_size,
        "eos_token_id": config.text.vocab_size - 1 if end_id is None else end_id,
        "model_type": f"{kind}_text_model",
    }
    if is_siglip:
        text |= {"projection_size": config.embed_dim, "pad_token_id": 1, "bos_token_id": None}
    else:
        text |= {"bos_token_id": config.text.vocab_size - 2, "pad_token_id": 0}
        vision["projection_dim"] = text["projection_dim"] = config.embed_dim
    return {
        "architectures": ["SiglipModel" if is_siglip else "CLIPModel"],
        "model_type": kind,
        **({} if is_siglip else {"projection_dim": config.embed_dim}),
        **({} if is_siglip else {"logit_scale_init_value": config.init_logit_scale}),
        "vision_config": vision,
        "text_config": text,
    }


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
    if (config.init_logit_bias is not None) != is_siglip:
        raise ValueError("in transformers SiglipModel alone has a bias, and always has one")


def write_preprocess(config: ModelConfig) -> dict[str, Any]:
    """The preprocessor_config.json of an architecture."""
    pre, size = config.preprocess, config.vision.image_size
    if pre.resize_mode == "longest":
        raise ValueError('transformers has no image processor with resize_mode="longest"')
    shortest = pre.resize_mode == "shortest"
    kind = "Siglip" if config.vision.pool == "map" else "CLIP"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": f"{kind}Processor",
        "do_resize": True,
        "size": {"shortest_edge": size} if shortest else {"height": size, "width": size},
        "resample": {name: number for number, name in FILTERS.items()}[pre.interpolation],
        **({"do_center_crop": shortest} if kind == "CLIP" else {}),
        **({"crop_size": {"height": size, "width": size}} if kind == "CLIP" else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
        "do_convert_rgb": True,
    }


CLIP_IMAGE = {
    "class_token": True, "pool": "class", "pre_norm": True, "patch_bias": False,
    "projection": True, "position": "learned",
}  # fmt: skip
CLIP_WORDS = {"causal": True, "pool": "argmax", "projection_bias": False}
SIGLIP_IMAGE = {
    "class_token": False, "pre_norm": False, "patch_bias": True, "projection": False,
    "position": "learned",
}  # fmt: skip
SIGLIP_WORDS = {"causal": False, "pool": "last", "projection_bias": True}


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

"""open_clip_config.json, read and written."""

import dataclasses
import logging
import math
import re
from typing import Any

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.models.tower import ImageTower
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.mapping import known_tower

log = logging.getLogger(__name__)

# timm's names of SigLIP's image towers, such as vit_base_patch16_siglip_224.
TIMM_NAME = re.compile(r"vit_(\w+)_patch(\d+)_siglip_(\d+)")
TIMM_SIZES = {
    "base": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "large": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096},
    "so400m": {"width": 1152, "depth": 27, "heads": 16, "mlp_width": 4304},
    "giantopt": {"width": 1536, "depth": 40, "heads": 16, "mlp_width": 6144},
}
SIGLIP_IMAGE = {
    "class_token": False, "pool": "map", "pre_norm": False, "patch_bias": True,
    "projection": False, "norm_epsilon": 1e-6,
}  # fmt: skip

# Settings of open_clip that change the arithmetic in ways that this package has not.
UNKNOWN = {
    "vision_cfg": (
        "ls_init_value", "attentional_pool", "qk_norm", "scaled_cosine_attn", "scale_heads",
        "scale_attn_inner", "scale_attn", "scale_fc", "output_tokens",
    ),
    "text_cfg": (
        "ls_init_value", "hf_model_name", "embed_cls", "qk_norm", "scaled_cosine_attn",
        "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
    ),
}  # fmt: skip


def read_config(content: dict[str, Any], *, source: str, name: str) -> ModelConfig:
    """The architecture that an open_clip_config.json, or its model_cfg alone, describes.

    Raises:
      ValueError: it describes a model that this package has not; the message names the setting.
    """
    model = content.get("model_cfg", content)
    for part, unknown in UNKNOWN.items():
        for key in unknown:
            if model.get(part, {}).get(key):
                raise ValueError(f'{source}: {part} sets "{key}", which this package has not')
    try:
        vision, text = _read_vision(model), _read_text(model)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source} is no open_clip config that can be read: {error}") from error
    is_siglip = "timm_model_name" in model["vision_cfg"]
    tokenizer = "huggingface" if "hf_tokenizer_name" in model["text_cfg"] else "clip"
    bias = model.get("init_logit_bias")
    return ModelConfig(
        name=name,
        embed_dim=model["embed_dim"],
        vision=vision,
        text=text,
        preprocess=read_preprocess(content.get("preprocess_cfg", {}), is_siglip=is_siglip),
        tokenizer="siglip" if is_siglip else tokenizer,
        init_logit_scale=model.get("init_logit_scale") or math.log(10 if bias else 1 / 0.07),
        init_logit_bias=None if bias is None else float(bias),
    )


def read_preprocess(content: dict[str, Any], *, is_siglip: bool) -> PreprocessConfig:
    """What a preprocess_cfg says of the pixels."""
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    known = {field.name for field in dataclasses.fields(PreprocessConfig)}
    given = {key: value for key, value in content.items() if key in known and value is not None}
    given |= {key: tuple(given[key]) for key in ("mean", "std") if key in given}
    if "fill_color" in content:
        given["fill"] = content["fill_color"]
    return PreprocessConfig(**((half if is_siglip else {}) | given))


def _read_vision(model: dict) -> ImageTower:
    cfg = model["vision_cfg"]
    size = cfg.get("image_size", 224)
    if "timm_model_name" in cfg:
        return _read_timm(cfg["timm_model_name"], size)
    width = cfg.get("width", 768)
    if isinstance(cfg.get("layers"), list | tuple):
        return ResNetConfig(
            image_size=size, width=width, depths=tuple(cfg["layers"]), heads=width * 32 // 64
        )
    pool = {"tok": "class", "avg": "mean"}[cfg.get("pool_type", "tok")]
    return VisionTransformerConfig(
        image_size=size,
        patch_size=cfg.get("patch_size", 16),
        width=width,
        depth=cfg.get("layers", 12),
        heads=width // cfg.get("head_width", 64),
        mlp_width=int(width * cfg.get("mlp_ratio", 4.0)),
        activation=_read_activation(model, cfg),
        norm_epsilon=(cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
        pool=pool,
        pool_before_norm=cfg.get("final_ln_after_pool", False) and pool == "mean",
        pre_norm=not cfg.get("no_ln_pre", False),
        patch_dropout=cfg.get("patch_dropout", 0.0),
    )


def _read_timm(name: str, image_size: int) -> VisionTransformerConfig:
    match = TIMM_NAME.fullmatch(name)
    if match is None or match[1] not in TIMM_SIZES:
        raise KeyError(f'the image tower "{name}" of timm is not known')
    return VisionTransformerConfig(
        image_size=image_size,
        patch_size=int(match[2]),
        activation=_timm_activation(name),
        **TIMM_SIZES[match[1]],
        **SIGLIP_IMAGE,
    )


def _timm_activation(name: str) -> str:
    """timm has the exact GELU in some towers and its tanh form, with which all were trained."""
    kind, patch, size = TIMM_NAME.fullmatch(name).groups()
    tanh = (kind, patch) in {("base", "32"), ("so400m", "16"), ("giantopt", "16")}
    return "gelu_tanh" if tanh or (kind, size) == ("large", "512") else "gelu"


def _read_text(model: dict) -> TextConfig:
    cfg = model["text_cfg"]
    width = cfg.get("width", 512)
    return TextConfig(
        context_length=cfg.get("context_length", 77),
        vocab_size=cfg.get("vocab_size", 49_408),
        width=width,
        depth=cfg.get("layers", 12),
        heads=cfg.get("heads", 8),
        mlp_width=int(width * cfg.get("mlp_ratio", 4.0)),
        activation=_read_activation(model, cfg),
        norm_epsilon=(cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
        causal=not cfg.get("no_causal_mask", False),
        pool={"argmax": "argmax", "last": "last"}[cfg.get("pool_type", "argmax")],
        projection_bias=cfg.get("proj_bias", False),
    )


def _read_activation(model: dict, cfg: dict) -> str:
    if model.get("quick_gelu"):
        return "quick_gelu"
    tanh = (cfg.get("act_kwargs") or {}).get("approximate") == "tanh"
    return "gelu_tanh" if tanh else "gelu"


# ------------------------------------------------------------------------------------ writing


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The open_clip_config.json of an architecture.

    Raises:
      ValueError: open_clip has no such model; the message says what it lacks.
    """
    vision, text, pre = config.vision, config.text, config.preprocess
    known_tower("open_clip", ("text_transformer",), text)
    quick = text.activation == "quick_gelu"
    vision_cfg = WRITE_VISION[known_tower("open_clip", WRITE_VISION, vision)](vision, quick)
    model = {
        "embed_dim": config.embed_dim,
        **({"quick_gelu": True} if quick else {}),
        **({"init_logit_bias": config.init_logit_bias} if config.init_logit_bias else {}),
        **({"custom_text": True} if "timm_model_name" in vision_cfg else {}),
        "vision_cfg": vision_cfg,
        "text_cfg": _write_text(text),
    }
    preprocess = {
        "mean": list(pre.mean),
        "std": list(pre.std),
        "interpolation": pre.interpolation,
        "resize_mode": pre.resize_mode,
    }
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def _check(vision: VisionTransformerConfig, quick: bool):
    reasons = {
        "class_token=False without attention pooling": not vision.class_token,
        "patch_bias=True": vision.patch_bias,
        "projection=False": not vision.projection,
        f'position="{vision.position}"': vision.position != "learned",
        "towers of which one has quick_gelu": (vision.activation == "quick_gelu") != quick,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"open_clip has no vision transformer with {reason}")


def _write_resnet(vision: ResNetConfig, quick: bool) -> dict:
    del quick  # a ResNet has no such activation
    return {
        "image_size": vision.image_size,
        "layers": list(vision.depths),
        "width": vision.width,
        "patch_size": None,
    }


def _write_vision_transformer(vision: VisionTransformerConfig, quick: bool) -> dict:
    if vision.pool == "map":
        return _write_timm(vision)
    _check(vision, quick)
    cfg = {
        "image_size": vision.image_size,
        "layers": vision.depth,
        "width": vision.width,
        "head_width": vision.width // vision.heads,
        "mlp_ratio": _ratio(vision.width, vision.mlp_width),
        "patch_size": vision.patch_size,
        **_arithmetic(vision),
    }
    if vision.pool == "mean":
        cfg |= {"pool_type": "avg", "final_ln_after_pool": vision.pool_before_norm}
    if not vision.pre_norm:
        cfg["no_ln_pre"] = True
    return cfg


WRITE_VISION = {"vision_transformer": _write_vision_transformer, "resnet": _write_resnet}


def _write_timm(vision: VisionTransformerConfig) -> dict:
    sizes = {key: getattr(vision, key) for key in ("width", "depth", "heads", "mlp_width")}
    kinds = [kind for kind, known in TIMM_SIZES.items() if known == sizes]
    form = {key: getattr(vision, key) for key in SIGLIP_IMAGE}
    if not kinds or form != SIGLIP_IMAGE:
        raise ValueError(f"timm has no SigLIP image tower of {sizes}")
    name = f"vit_{kinds[0]}_patch{vision.patch_size}_siglip_{vision.image_size}"
    if _timm_activation(name) != vision.activation:
        log.warning(
            "open_clip computes %s with %s, and this model has %s: embeddings differ by about 1e-3",
            *(name, _timm_activation(name), vision.activation),
        )
    return {
        "image_size": vision.image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }


def _write_text(text: TextConfig) -> dict:
    cfg = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.depth,
        "mlp_ratio": _ratio(text.width, text.mlp_width),
        **_arithmetic(text),
    }
    if not text.causal:
        cfg["no_causal_mask"] = True
    if text.pool == "last":
        cfg["pool_type"] = "last"
    if text.projection_bias:
        cfg["proj_bias"] = True
    return cfg


def _arithmetic(tower: VisionTransformerConfig | TextConfig) -> dict:
    cfg = {}
    if tower.norm_epsilon != 1e-5:
        cfg["norm_kwargs"] = {"eps": tower.norm_epsilon}
    if tower.activation == "gelu_tanh":
        cfg["act_kwargs"] = {"approximate": "tanh"}
    return cfg


def _ratio(width: int, mlp_width: int) -> float:
    """A ratio from which open_clip's int(width * ratio) finds the MLP's width."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf)

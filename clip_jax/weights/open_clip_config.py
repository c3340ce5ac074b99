"""open_clip_config.json, read and written."""

import logging
import math
from typing import Any

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.models.tower import ImageTower
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.config_values import MOST_LAYERS, Section
from clip_jax.weights.mapping import known_tower
from clip_jax.weights.timm_names import SIGLIP_IMAGE, TIMM_SIZES, activation_of, tower_of

log = logging.getLogger(__name__)

# Keys of CLIPVisionCfg and CLIPTextCfg in open_clip 3.3.0 that change the arithmetic in ways that this
# package has not: they must have these values, open_clip's defaults.
CUSTOM_BLOCKS = {
    "ls_init_value": None, "block_type": "default", "qk_norm": False, "scaled_cosine_attn": False,
    "scale_heads": False, "scale_attn_inner": False, "scale_attn": False, "scale_fc": False,
    "output_tokens": False,
}  # fmt: skip
VISION_OFF = CUSTOM_BLOCKS | {"attentional_pool": False}
TEXT_OFF = CUSTOM_BLOCKS | {
    "hf_model_name": None, "embed_cls": False, "final_ln_after_pool": False, "tokenizer_mode": None,
}  # fmt: skip
TIMM_OFF = {"timm_pool": "map", "timm_proj": "none", "timm_proj_bias": False, "timm_drop": 0.0,
            "timm_drop_path": 0.0}  # fmt: skip
# Keys without effect: on a model without attentional pooling, on one of timm's towers, ...
VISION_IGNORED = {"attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained"}
TRANSFORMER_KEYS = {"width", "layers", "head_width", "mlp_ratio", "patch_size", "no_ln_pre",
                    "final_ln_after_pool", "pool_type", "pos_embed_type", "act_kwargs", "norm_kwargs"}  # fmt: skip
TEXT_IGNORED = {"pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
                "tokenizer_kwargs"}  # fmt: skip
MODEL_IGNORED = {"custom_text", "nonscalar_logit_scale", "cast_dtype", "output_dict"}


def read_config(content: dict[str, Any], *, source: str, name: str) -> ModelConfig:
    """The architecture that an open_clip_config.json, or its model_cfg alone, describes.

    Raises:
      ValueError: it describes a model that this package has not, or is not well formed; the
        message names the key.
    """
    whole = Section(content, source)
    model = whole.section("model_cfg") if "model_cfg" in whole else whole
    vision, text = _read_vision(model), _read_text(model)
    is_siglip = "timm_model_name" in model.section("vision_cfg")
    words = model.section("text_cfg")
    tokenizer = "huggingface" if "hf_tokenizer_name" in words else "clip"
    if is_siglip or words.section("tokenizer_kwargs").get("clean") == "canonicalize":
        tokenizer = "siglip"
    bias = model.number("init_logit_bias") if "init_logit_bias" in model else None
    found = {
        "embed_dim": model.integer("embed_dim"),
        "init_logit_scale": model.number("init_logit_scale", math.log(10 if bias else 1 / 0.07)),
        "preprocess": read_preprocess(whole.section("preprocess_cfg"), is_siglip=is_siglip),
    }
    model.refuse_others({}, MODEL_IGNORED | ({"preprocess_cfg"} if model is whole else set()))
    return _checked(
        model,
        ModelConfig,
        name=name,
        vision=vision,
        text=text,
        tokenizer=tokenizer,
        init_logit_bias=bias,
        **found,
    )


def _checked(section: Section, kind: type, **fields):
    """An architecture's part, its own refusals with the place in the file."""
    try:
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"{section.where}: {error}") from error


def read_preprocess(content: Section, *, is_siglip: bool) -> PreprocessConfig:
    """What a preprocess_cfg says of the pixels."""
    default = PreprocessConfig()
    if is_siglip:
        default = PreprocessConfig(mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash")
    modes = {"shortest": "shortest", "longest": "longest", "squash": "squash"}
    found = _checked(
        content,
        PreprocessConfig,
        mean=content.triple("mean", default.mean),
        std=content.triple("std", default.std),
        interpolation=content.choice("interpolation", default.interpolation, FILTERS),
        resize_mode=content.choice("resize_mode", default.resize_mode, modes),
        fill=content.integer("fill_color", 0, 255, least=0),
    )
    content.choice("mode", "RGB", {"RGB": "RGB"})
    content.refuse_others({}, {"size"})  # open_clip takes the model's image size instead
    return found


FILTERS = {"bicubic": "bicubic", "bilinear": "bilinear"}


def _read_vision(model: Section) -> ImageTower:
    cfg = model.section("vision_cfg")
    size = cfg.square("image_size", 224)
    if "timm_model_name" in cfg:
        return _read_timm(cfg, size)
    ignored = VISION_IGNORED | set(TIMM_OFF)
    if isinstance(cfg.get("layers"), list):
        return _read_resnet(cfg, size, ignored | TRANSFORMER_KEYS | {"patch_dropout"})
    width, pool = cfg.integer("width", 768), cfg.choice("pool_type", "tok", VISION_POOLS)
    # Fixed positions lie in the file like learned ones, and are read from there.
    cfg.choice("pos_embed_type", "learnable", {"learnable": None, "sin_cos_2d": None})
    after_pool = cfg.flag("final_ln_after_pool", False)
    found = {
        "image_size": size,
        "patch_size": cfg.square("patch_size", 16),
        "width": width,
        "depth": cfg.integer("layers", 12, most=MOST_LAYERS),
        "heads": width // cfg.integer("head_width", 64),
        "mlp_width": int(width * cfg.number("mlp_ratio", 4.0)),
        "activation": _read_activation(model, cfg),
        "norm_epsilon": _read_epsilon(cfg),
        "pool": pool,
        "pool_before_norm": after_pool and pool == "mean",
        "pre_norm": not cfg.flag("no_ln_pre", False),
        "patch_dropout": cfg.number("patch_dropout", 0.0),
    }
    cfg.refuse_others(VISION_OFF, ignored)
    return _checked(cfg, VisionTransformerConfig, **found)


VISION_POOLS = {"tok": "class", "avg": "mean"}


def _read_resnet(cfg: Section, size: int, ignored: set[str]) -> ResNetConfig:
    depths, width = cfg.get("layers"), cfg.integer("width", 768)
    if len(depths) != 4 or not all(isinstance(n, int) and 0 < n <= MOST_LAYERS for n in depths):
        raise cfg.error("layers", "a list of four whole numbers")
    heads = width * 32 // cfg.integer("head_width", 64)
    cfg.refuse_others(VISION_OFF, ignored)
    return _checked(
        cfg, ResNetConfig, image_size=size, width=width, depths=tuple(depths), heads=heads
    )


def _read_timm(cfg: Section, size: int) -> VisionTransformerConfig:
    name = str(cfg.get("timm_model_name"))
    tower = tower_of(name)
    if not tower:
        raise ValueError(
            f'{cfg.where}: timm_model_name is "{name}"; of timm\'s towers only those of SigLIP '
            "(vit_..._siglip_...) are supported"
        )
    dropout = cfg.number("patch_dropout", 0.0)
    for key in ("timm_pool", "timm_proj"):
        cfg.choice(key, None, {TIMM_OFF[key]: None})
    cfg.refuse_others(VISION_OFF | TIMM_OFF, VISION_IGNORED | TRANSFORMER_KEYS)
    return _checked(cfg, VisionTransformerConfig, image_size=size, patch_dropout=dropout, **tower)


def _read_text(model: Section) -> TextConfig:
    cfg = model.section("text_cfg")
    width = cfg.integer("width", 512)
    projection = cfg.choice("proj_type", "linear", {"linear": True, "none": False})
    pool = cfg.choice("pool_type", "argmax", {"argmax": "argmax", "last": "last", "eos": "eos"})
    found = {
        "context_length": cfg.integer("context_length", 77),
        "vocab_size": cfg.integer("vocab_size", 49_408),
        "width": width,
        "depth": cfg.integer("layers", 12, most=MOST_LAYERS),
        "heads": cfg.integer("heads", 8),
        "mlp_width": int(width * cfg.number("mlp_ratio", 4.0)),
        "activation": _read_activation(model, cfg),
        "norm_epsilon": _read_epsilon(cfg),
        "causal": not cfg.flag("no_causal_mask", False),
        "pool": pool,
        "end_id": cfg.integer("eos_id", 2) if pool == "eos" else None,
        "projection": projection,
        "projection_bias": cfg.flag("proj_bias", False) and projection,
    }
    cfg.get("hf_tokenizer_name")
    cfg.refuse_others(TEXT_OFF, TEXT_IGNORED)
    return _checked(cfg, TextConfig, **found)


def _read_activation(model: Section, cfg: Section) -> str:
    more = cfg.section("act_kwargs")
    tanh = more.choice("approximate", "none", {"none": False, "tanh": True})
    more.refuse_others({}, false_is_off=False)
    if not model.flag("quick_gelu", False):
        return "gelu_tanh" if tanh else "gelu"
    if tanh:
        raise cfg.error("act_kwargs", "no tanh form beside quick_gelu, which has none,")
    return "quick_gelu"


def _read_epsilon(cfg: Section) -> float:
    more = cfg.section("norm_kwargs")
    epsilon = more.number("eps", 1e-5)
    more.refuse_others({}, false_is_off=False)
    return epsilon


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
    if pre.resize_size not in (None, vision.image_size):
        raise ValueError(
            f"open_clip has no preprocessing with resize_size={pre.resize_size} beside an image size "
            f"of {vision.image_size}"
        )
    if pre.interpolation not in FILTERS:
        raise ValueError(f'open_clip has no preprocessing with interpolation="{pre.interpolation}"')
    preprocess = {
        "mean": list(pre.mean),
        "std": list(pre.std),
        "interpolation": pre.interpolation,
        "resize_mode": pre.resize_mode,
        **({"fill_color": pre.fill} if pre.fill else {}),
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
        "head_width": vision.width * 32 // vision.heads,
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
    if activation_of(name) != vision.activation:
        log.warning(
            "open_clip computes %s with %s, and this model has %s: embeddings differ by about 1e-3",
            *(name, activation_of(name), vision.activation),
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
    if text.pool == "eos":
        cfg |= {"pool_type": "eos", "eos_id": text.end_id}
    if text.projection_bias:
        cfg["proj_bias"] = True
    if not text.projection:
        cfg["proj_type"] = "none"
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

"""timm's names of SigLIP's image towers, such as vit_base_patch16_siglip_224, and what they mean."""

import re

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


def tower_of(name: str) -> dict:
    """The fields of `VisionTransformerConfig` that a name stands for; empty for an unknown name."""
    match = TIMM_NAME.fullmatch(name)
    if match is None or match[1] not in TIMM_SIZES:
        return {}
    sizes = {"patch_size": int(match[2]), "activation": activation_of(name)}
    return sizes | TIMM_SIZES[match[1]] | SIGLIP_IMAGE


def activation_of(name: str) -> str:
    """timm has the exact GELU in some towers and its tanh form, with which all were trained."""
    kind, patch, size = TIMM_NAME.fullmatch(name).groups()
    tanh = (kind, patch) in {("base", "32"), ("so400m", "16"), ("giantopt", "16")}
    return "gelu_tanh" if tanh or (kind, size) == ("large", "512") else "gelu"

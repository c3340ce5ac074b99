"""Hugging Face's preprocessing of images: processor_config.json and preprocessor_config.json."""

from typing import Any

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.weights.config_values import Section

FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
HALF = (0.5, 0.5, 0.5)
# What each class does where its file does not say otherwise, in transformers 5.24.
CLIP_PIXELS = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True,
    "crop_size": 224, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": PreprocessConfig().mean, "image_std": PreprocessConfig().std,
}  # fmt: skip
SIGLIP_PIXELS = CLIP_PIXELS | {
    "size": {"height": 224, "width": 224}, "do_center_crop": False, "image_mean": HALF,
    "image_std": HALF,
}  # fmt: skip
CLASSES = {
    "CLIPImageProcessor": CLIP_PIXELS,
    "CLIPFeatureExtractor": CLIP_PIXELS,
    "SiglipImageProcessor": SIGLIP_PIXELS,
    "ViTImageProcessor": SIGLIP_PIXELS | {"resample": 2},
    "ViTFeatureExtractor": SIGLIP_PIXELS | {"resample": 2},
}
# Keys that change no pixel: how a batch is held, and who wrote the file.
IGNORED = {
    "_valid_processor_keys", "auto_map", "data_format", "default_to_square", "device",
    "disable_grouping", "do_convert_rgb", "feature_extractor_type", "image_processor_type",
    "image_seq_length", "input_data_format", "pad_size", "processor_class", "return_tensors",
    "size_divisor", "transformers_version",
}  # fmt: skip


def read_preprocess(content: Section, config: ModelConfig) -> PreprocessConfig:
    """What an image processor's JSON says, for the architecture that lies beside it.

    Rescaling and normalising are one product and one sum, whatever their numbers are, and also
    where one of them is switched off.

    Raises:
      ValueError: it does what this package has not; the message names the key.
    """
    own = "SiglipImageProcessor" if config.vision.pool == "map" else "CLIPImageProcessor"
    named = content.get("image_processor_type", content.get("feature_extractor_type", own))
    kind = str(named).removesuffix("Fast").removesuffix("Pil")
    if kind not in CLASSES:
        raise ValueError(
            f'{content.where}: image_processor_type is "{named}"; supported are {", ".join(CLASSES)}'
        )
    pixels = content.with_defaults(CLASSES[kind])
    if not pixels.flag("do_resize", True):
        raise pixels.error("do_resize", "true (images of any size are not supported)")
    mode, size = _resize(pixels, square_by_default=kind.startswith("ViT"))
    cropped = pixels.flag("do_center_crop", False)
    if cropped:
        size_out = pixels.square("crop_size")
    elif mode == "shortest":
        raise pixels.error("do_center_crop", "true (else images differ in size)")
    else:
        size_out = size
        pixels.get("crop_size")
    wanted = config.vision.image_size
    if size_out != wanted:
        key = "crop_size" if cropped else "size"
        raise pixels.error(key, f"{wanted}, the image size of the model,")
    factor = 255 * (pixels.number("rescale_factor") if pixels.flag("do_rescale", True) else 1.0)
    pixels.get("rescale_factor")
    normalized = pixels.flag("do_normalize", True)
    mean = pixels.triple("image_mean", HALF) if normalized else (0.0,) * 3
    std = pixels.triple("image_std", HALF) if normalized else (1.0,) * 3
    pixels.get("image_mean"), pixels.get("image_std")
    interpolation = pixels.choice("resample", 3, FILTERS)
    pixels.refuse_others({}, IGNORED)
    try:
        return PreprocessConfig(
            mean=_divided(mean, factor),
            std=_divided(std, factor),
            interpolation=interpolation,
            resize_mode=mode,
            resize_size=None if size == wanted else size,
            crop_offset="floor" if cropped else "round",
        )
    except ValueError as error:
        raise ValueError(f"{pixels.where}: {error}") from error


def _divided(values: tuple[float, ...], factor: float) -> tuple[float, ...]:
    # 255 * (1 / 255) is 1 but for rounding, and the usual numbers are to stay what they are.
    exact = abs(factor - 1) < 1e-6
    if not exact and factor <= 0:
        raise ValueError(f"rescale_factor={factor / 255} must be above 0")
    return values if exact else tuple(value / factor for value in values)


def _resize(pixels: Section, *, square_by_default: bool) -> tuple[str, int]:
    """The mode, and the pixels of the side that it sets."""
    size = pixels.get("size")
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return "shortest", Section(size, f"{pixels.where}: size").integer("shortest_edge")
    if isinstance(size, int) and not square_by_default:
        return "shortest", pixels.integer("size")
    if isinstance(size, dict) and set(size) != {"height", "width"}:
        raise pixels.error("size", "shortest_edge, or height and width,")
    return "squash", pixels.square("size")


def write_preprocess(config: ModelConfig) -> dict[str, Any]:
    """The preprocessor_config.json of an architecture."""
    pre, size = config.preprocess, config.vision.image_size
    resized = pre.resize_size or size
    if pre.resize_mode == "longest":
        raise ValueError('transformers has no image processor with resize_mode="longest"')
    shortest = pre.resize_mode == "shortest"
    cropped = shortest or resized != size
    # SiglipImageProcessor has no crop.
    kind = "Siglip" if config.vision.pool == "map" and not cropped else "CLIP"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": "SiglipProcessor" if config.vision.pool == "map" else "CLIPProcessor",
        "do_resize": True,
        "size": {"shortest_edge": resized} if shortest else {"height": resized, "width": resized},
        "resample": {name: number for number, name in FILTERS.items()}[pre.interpolation],
        **({"do_center_crop": cropped} if kind == "CLIP" else {}),
        **({"crop_size": {"height": size, "width": size}} if kind == "CLIP" else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
        "do_convert_rgb": True,
    }

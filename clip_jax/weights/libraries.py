"""Which library wrote a file of weights, and what its config beside the file says."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clip_jax.config import ModelConfig
from clip_jax.models.architectures import ARCHITECTURES, model_config, with_activation
from clip_jax.weights import big_vision, detect, huggingface, open_clip
from clip_jax.weights.config_values import read_json
from clip_jax.weights.files import NamedTensors
from clip_jax.weights.huggingface_config import read_config as read_huggingface
from clip_jax.weights.huggingface_preprocess import read_preprocess
from clip_jax.weights.mapping import Link
from clip_jax.weights.open_clip_config import read_config as read_open_clip
from clip_jax.weights.other_towers import refuse_changed_weights, refuse_other_towers

log = logging.getLogger(__name__)

# Released weights whose preprocessing differs from that of other weights of the same shapes.
PREPROCESSED_APART = {
    "ViT-L-14": "laion2b_s32b_b82k was trained with mean and std 0.5",
    "ViT-H-14": "dfn5b was trained with resize_mode squash",
    "ViT-H-14-378": "dfn5b was trained with resize_mode squash",
}


class Library(NamedTuple):
    """How one library names tensors and describes a model."""

    name: str
    links: Callable[[ModelConfig], list[Link]]
    is_no_weight: Callable[[str], bool]  # of a tensor's name
    read_config: Callable[[Path, NamedTensors], ModelConfig]


def library_of(file: Path, tensors: NamedTensors) -> Library:
    """The library that wrote a file.

    Raises:
      ValueError: the config.json beside it is of a kind of model that this package has not.
    """
    shapes = tensors.shapes()
    refuse_changed_weights(shapes, str(file))
    if tensors.is_npz:
        links = lambda wanted: big_vision.links(wanted, shapes)  # noqa: E731
        return Library("big_vision", links, big_vision.is_no_weight, _big_vision_config)
    config = file.with_name("config.json")
    has_their_names = any(n.startswith(("text_model.", "vision_model.")) for n in shapes)
    alone = not file.with_name("open_clip_config.json").is_file() and not _has_open_clips_names(
        shapes
    )
    if has_their_names or (alone and config.is_file() and "model_type" in read_json(config)):
        _check_both_towers(file, config, shapes)
        return Library(
            "huggingface", huggingface.links, huggingface.is_no_weight, _huggingface_config
        )
    refuse_other_towers(shapes, str(file))
    custom_text = "text.token_embedding.weight" in shapes
    links = partial(open_clip.links, custom_text=custom_text)
    return Library("open_clip", links, open_clip.is_no_weight, _open_clip_config)


def _has_open_clips_names(shapes) -> bool:
    return any(name.startswith("visual.") for name in shapes)


def _check_both_towers(file: Path, config: Path, shapes):
    if not config.is_file():
        raise ValueError(f"{file} has Hugging Face's names but no config.json beside it")
    content = read_json(config)
    read_huggingface(
        content.content, source=str(config), name="custom"
    )  # refuses other kinds of model
    for name in ("text_model.embeddings.token_embedding.weight", "logit_scale"):
        if name not in shapes:
            kinds = content.get("architectures", [])
            shown = ", ".join(map(str, kinds)) if isinstance(kinds, list) else kinds
            raise ValueError(
                f'{file} has no tensor "{name}" (its config.json names {shown or "no architecture"}): '
                "a model with both towers is needed, such as CLIPModel or SiglipModel"
            )


def _big_vision_config(file: Path, tensors: NamedTensors) -> ModelConfig:
    """big_vision computes all of SigLIP with the tanh form of GELU, unlike timm."""
    found = detect.figures_of_npz(tensors.shapes())
    config = model_config(detect.find_architecture(found, source=str(file)))
    return with_activation(config, "gelu_tanh")


def _huggingface_config(file: Path, tensors: NamedTensors) -> ModelConfig:
    config = file.with_name("config.json")
    found = read_huggingface(
        read_json(config).content, source=str(config), name=_directory_name(config)
    )
    # As transformers 5 has it: what is nested in the processor's file comes first.
    processor = file.with_name("processor_config.json")
    pixels = None
    if processor.is_file():
        content = read_json(processor)
        pixels = content.section("image_processor") if "image_processor" in content else None
    own = file.with_name("preprocessor_config.json")
    if pixels is None and own.is_file():
        pixels = read_json(own)
    if pixels is None:
        _say_preprocessing(file, found)
        return found
    return dataclasses.replace(found, preprocess=read_preprocess(pixels, found))


def _open_clip_config(file: Path, tensors: NamedTensors) -> ModelConfig:
    config = file.with_name("open_clip_config.json")
    if config.is_file():
        content = read_json(config).content
        found = read_open_clip(content, source=str(config), name=_directory_name(config))
        if "preprocess_cfg" not in content:
            _say_preprocessing(file, found)
        return found
    is_openai = tensors.is_torchscript or "input_resolution" in tensors.shapes()
    figures = detect.figures_of_file(tensors.shapes())
    name = detect.find_architecture(figures, source=str(file), quick_gelu=is_openai)
    if f"{name}-quickgelu" in ARCHITECTURES:
        log.warning(
            '%s was taken for %s: if it was trained with QuickGELU, load it with model="%s"',
            *(file, name, f"{name}-quickgelu"),
        )
    found = model_config(name)
    if not is_openai:
        _say_preprocessing(file, found)
    return found


def _directory_name(file: Path) -> str:
    return file.resolve().parent.name or "custom"


def _say_preprocessing(file: Path, config: ModelConfig):
    """No shape tells how images were preprocessed."""
    pre = config.preprocess
    apart = PREPROCESSED_APART.get(config.name.removesuffix("-quickgelu"))
    log.warning(
        "%s: no file beside it tells its preprocessing: assumed mean %s, std %s, interpolation %s, "
        "resize_mode %s; for another one load it with model=create_model(NAME, "
        "preprocess=PreprocessConfig(...)).config%s",
        *(file, pre.mean, pre.std, pre.interpolation, pre.resize_mode),
        f" ({apart})" if apart else "",
    )

"""A model with its tokenizer and preprocessing, from released weights of any library."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.data.images.transforms import eval_image
from clip_jax.data.tokenizers.registry import (
    ClipaTokenizer,
    ClipTokenizer,
    HuggingFaceTokenizer,
    SiglipTokenizer,
    Tokenizer,
    load_tokenizer,
)
from clip_jax.models.architectures import ARCHITECTURES, model_config, with_activation
from clip_jax.models.clip import CLIP
from clip_jax.weights import big_vision, detect, huggingface, open_clip, position_embeddings
from clip_jax.weights.files import open_tensors
from clip_jax.weights.huggingface_config import read_config as read_huggingface
from clip_jax.weights.huggingface_config import read_preprocess
from clip_jax.weights.mapping import Link, Tensors, import_variables
from clip_jax.weights.open_clip_config import read_config as read_open_clip

log = logging.getLogger(__name__)

MAX_PIXELS = 178_956_970  # where Pillow itself takes an image for a bomb


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Turns an image file into what `encode_image` takes: `preprocess(path_or_bytes)`.

    Attributes:
      config: mean, deviation, interpolation and resize mode.
      image_size: pixels on each side of the result.
    """

    config: PreprocessConfig
    image_size: int

    def __call__(self, file: str | Path | bytes) -> np.ndarray:
        """An image file's path or bytes to (image_size, image_size, 3) uint8."""
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
        return eval_image(data, self.config, self.image_size, MAX_PIXELS)


class Loaded(NamedTuple):
    """A model that is ready to use: `model.apply(variables, images, method="encode_image")`."""

    model: CLIP
    variables: dict
    tokenizer: Tokenizer | None  # None: its file does not lie with the weights
    preprocess: Preprocess


def load_released(path: str | Path, model: str | ModelConfig | None = None) -> Loaded:
    """Load released weights; see `clip_jax.load`."""
    path = Path(path)
    given = None if model is None else model_config(model)
    config, variables = read_weights(path, given)
    tokenizer = find_tokenizer(config, path if path.is_dir() else path.parent)
    return Loaded(CLIP(config), variables, tokenizer, preprocess_of(config))


def preprocess_of(config: ModelConfig) -> Preprocess:
    """The preprocessing that belongs to an architecture."""
    return Preprocess(config.preprocess, config.vision.image_size)


WEIGHTS = (
    "open_clip_model.safetensors", "model.safetensors", "model.safetensors.index.json",
    "open_clip_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip


def read_weights(path: Path, given: ModelConfig | None) -> tuple[ModelConfig, dict]:
    """The architecture and the variables of released weights."""
    file = _find_file(path)
    tensors = open_tensors(file)
    shapes = tensors.shapes()
    make_links, ignored = _format_of(file, shapes)
    wanted = given or _read_config(make_links, file, tensors)
    try:
        links = make_links(wanted)
        stored = _as_in_file(wanted, links, shapes)
        variables = import_variables(stored, links, tensors, ignored=ignored, source=str(file))
    except ValueError as error:
        if make_links is not open_clip.links:
            raise
        name, _ = detect.closest(detect.figures_of_file(shapes))
        raise ValueError(f"{error}; of the known architectures {name} is the closest") from error
    return wanted, position_embeddings.resize(variables, stored, wanted)


def _find_file(path: Path) -> Path:
    """The file of weights."""
    if path.is_file():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    raise ValueError(
        f"{path} is neither a run directory (no model.json) nor holds weights (none of "
        f"{', '.join(WEIGHTS)})"
    )


def _format_of(
    file: Path, shapes: dict
) -> tuple[Callable[[ModelConfig], list[Link]], Callable[[str], bool]]:
    """The table of names, and which tensors are no weights."""
    if file.suffix == ".npz":
        return lambda wanted: big_vision.links(wanted, shapes), big_vision.is_no_weight
    if "text_model.embeddings.token_embedding.weight" in shapes:
        return huggingface.links, huggingface.is_no_weight
    return open_clip.links, open_clip.is_no_weight


def _read_config(make_links: Callable, file: Path, tensors: Tensors) -> ModelConfig:
    """The architecture, from the library's own config beside the file or from the shapes."""
    if file.suffix == ".npz":
        found = detect.figures_of_npz(tensors.shapes())
        # big_vision computes all of SigLIP with the tanh form of GELU, unlike timm.
        name = detect.find_architecture(found, source=str(file))
        return with_activation(model_config(name), "gelu_tanh")
    if make_links is huggingface.links:
        config = file.with_name("config.json")
        if not config.is_file():
            raise ValueError(f"{file} has Hugging Face's names but no config.json beside it")
        return _read_huggingface(config)
    config = file.with_name("open_clip_config.json")
    if config.is_file():
        return read_open_clip(_json(config), source=str(config), name=config.parent.name)
    is_openai = getattr(tensors, "is_torchscript", False) or "input_resolution" in tensors.shapes()
    found = detect.figures_of_file(tensors.shapes())
    name = detect.find_architecture(found, source=str(file), quick_gelu=is_openai)
    if f"{name}-quickgelu" in ARCHITECTURES:
        log.warning(
            '%s was taken for %s: if it was trained with QuickGELU, load it with model="%s"',
            *(file, name, f"{name}-quickgelu"),
        )
    return model_config(name)


def _read_huggingface(config: Path) -> ModelConfig:
    found = read_huggingface(_json(config), source=str(config), name=config.parent.name)
    preprocess = config.with_name("preprocessor_config.json")
    if not preprocess.is_file():
        return found
    return dataclasses.replace(
        found, preprocess=read_preprocess(_json(preprocess), found.preprocess)
    )


def _as_in_file(wanted: ModelConfig, links: list[Link], shapes: dict) -> ModelConfig:
    """The architecture with the image size and context length of the file."""
    axis = {"same": 0, "lead": 1}
    towers = {path: name for name, path in position_embeddings.paths(wanted).items()}
    found = {}
    for link in links:
        if link.ours in towers:
            shape = shapes.get(link.theirs)
            if shape is None:
                raise ValueError(f'there is no tensor "{link.theirs}", which {wanted.name} needs')
            found[towers[link.ours]] = shape[axis[link.form]]
    if "image" not in found:  # fixed ones
        return wanted
    return position_embeddings.as_stored(wanted, found)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error


# ------------------------------------------------------------------------------------ tokenizer

SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.model")


def find_tokenizer(config: ModelConfig, directory: Path) -> Tokenizer | None:
    """The tokenizer of released weights, from the files beside them where it needs some."""
    length = config.text.context_length
    if config.tokenizer == "clip":
        return ClipTokenizer(length)
    if (directory / "tokenizer" / "description.json").is_file():  # written by our own export
        return load_tokenizer(directory / "tokenizer", context_length=length)
    if config.tokenizer == "siglip":
        for name in (*SENTENCEPIECE, "tokenizer.json"):
            if (directory / name).is_file():
                return SiglipTokenizer((directory / name).read_bytes(), length)
    elif (directory / "tokenizer.json").is_file():
        content = (directory / "tokenizer.json").read_bytes()
        kind = HuggingFaceTokenizer if config.text.reads_largest_id else ClipaTokenizer
        return kind(content, length)
    log.warning("%s has no tokenizer file: the loaded tokenizer is None", directory)
    return None

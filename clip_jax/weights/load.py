"""A model with its tokenizer and preprocessing, from released weights of any library."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_jax.config import ModelConfig, PreprocessConfig
from clip_jax.data.images.transforms import eval_image
from clip_jax.data.tokenizers.registry import Tokenizer
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.storage.json_text import parse_json
from clip_jax.weights import detect, position_embeddings
from clip_jax.weights.files import open_tensors, path_inside
from clip_jax.weights.libraries import library_of
from clip_jax.weights.mapping import Link, MisfitError, import_variables
from clip_jax.weights.tokenizer_files import find_tokenizer

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
    file = find_file(Path(path))
    given = None if model is None else model_config(model)
    config, variables, library = read_weights(file, given)
    tokenizer = find_tokenizer(config, file.parent, library=library)
    return Loaded(CLIP(config), variables, tokenizer, preprocess_of(config))


def preprocess_of(config: ModelConfig) -> Preprocess:
    """The preprocessing that belongs to an architecture."""
    return Preprocess(config.preprocess, config.vision.image_size)


WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_model.safetensors.index.json", "model.safetensors",
    "model.safetensors.index.json", "open_clip_pytorch_model.bin", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip


def read_weights(file: Path, given: ModelConfig | None) -> tuple[ModelConfig, dict, str]:
    """The architecture, the variables and the library of released weights."""
    tensors = open_tensors(file)
    shapes = tensors.shapes()
    library = library_of(file, tensors)
    wanted = given or library.read_config(file, tensors)
    try:
        links = library.links(wanted)
        stored = _as_in_file(wanted, links, shapes)
        variables = import_variables(
            stored, links, tensors, ignored=library.is_no_weight, source=str(file)
        )
    except MisfitError as error:
        if library.name != "open_clip" or (given is None and _has_config(file)):
            raise
        name, _ = detect.closest(detect.figures_of_file(shapes))
        raise ValueError(f"{error}; of the known architectures {name} is the closest") from error
    return wanted, position_embeddings.resize(variables, stored, wanted), library.name


def _has_config(file: Path) -> bool:
    return file.with_name("open_clip_config.json").is_file()


def find_file(path: Path) -> Path:
    """The file of weights at a path, or in the directory there."""
    if path.is_file():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    if (path / "modules.json").is_file():
        return find_file(clip_module(path / "modules.json"))
    if not path.is_dir():
        raise ValueError(f"{path} is neither a file nor a directory")
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"{path} holds an adapter of PEFT without its model: merge it (merge_and_unload) and save the result"
        )
    names = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    raise ValueError(
        f"{path} is neither a run directory (no model.json) nor holds weights (none of "
        f"{', '.join(WEIGHTS)}); in it are {shown or 'no files'}. A file with another name is loaded by "
        "its own path"
    )


def clip_module(modules: Path) -> Path:
    """The folder of the CLIP model in a directory of sentence-transformers.

    Raises:
      ValueError: it has none, or another module changes the embeddings after it.
    """
    try:
        kinds = [(one["path"], str(one["type"])) for one in parse_json(modules.read_bytes())]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{modules} is no list of modules: {error}") from error
    paths = [path for path, kind in kinds if kind.endswith(("CLIPModel", "Transformer"))]
    if not paths or paths[0] in ("", "."):
        raise ValueError(f"{modules} lists no CLIPModel in a folder of its own")
    found = path_inside(modules.parent, paths[0], source=str(modules))
    for path, kind in kinds:
        if path != paths[0] and not kind.endswith(
            "Normalize"
        ):  # embeddings have unit length anyway
            raise ValueError(
                f"{modules} lists a {kind.rpartition('.')[2]} in {path!r} beside the CLIP model, which is "
                f"not read: without it the embeddings are others. Load {found} for the CLIP model alone"
            )
    return found


def _as_in_file(wanted: ModelConfig, links: list[Link], shapes: dict) -> ModelConfig:
    """The architecture with the image size and context length of the file."""
    axis = {"same": 0, "lead": 1}
    towers = {path: name for name, path in position_embeddings.paths(wanted).items()}
    found = {}
    for link in links:
        if link.ours in towers:
            shape = shapes.get(link.theirs)
            if shape is None:
                raise MisfitError(f'there is no tensor "{link.theirs}", which {wanted.name} needs')
            if len(shape) != 2 + axis[link.form]:
                raise MisfitError(f'tensor "{link.theirs}" has shape {shape}, which is no table')
            found[towers[link.ours]] = shape[axis[link.form]]
    if "image" not in found:  # fixed ones
        return wanted
    return position_embeddings.as_stored(wanted, found)

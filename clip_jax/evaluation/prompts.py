"""Prompts: which texts stand for a class, the files that name them, and the vectors they become."""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from clip_jax.evaluation.encode import Encoder
from clip_jax.storage.json_text import parse_json

# OpenAI's selection out of 80 for ImageNet, in its notebook "Prompt_Engineering_for_ImageNet".
SIMPLE_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# ImageNet's class names, and OpenAI's 80 templates for it, are shipped under this name.
IMAGENET = "imagenet"
SHIPPED = resources.files("clip_jax.evaluation.bench") / "prompts"
PLACES = ("{}", "{c}")  # where the name of a class goes: ours and open_clip's, CLIP_benchmark's
TEXTS_AT_ONCE = 8192  # prompts that are in host memory as tokens and embeddings

# Templates for all classes, or the finished prompts of each class by its name, as CuPL has them.
Templates = Sequence[str] | Mapping[str, Sequence[str]]


def has_place(template: str) -> bool:
    """Whether a template says where the name of a class goes."""
    return any(place in template for place in PLACES)


def prompts_of(name: str, templates: Templates) -> list[str]:
    """The texts that stand for a class.

    Args:
      name: of the class, such as "red circle".
      templates: texts with {} or {c} where the name goes; or a mapping from the names of classes
        to finished prompts (CuPL, arXiv:2209.03320).
    """
    if isinstance(templates, Mapping):
        return list(templates[name])
    return [template.replace("{c}", name).replace("{}", name) for template in templates]


def class_embeddings(
    encoder: Encoder,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    classes: Sequence[str],
    templates: Templates = SIMPLE_TEMPLATES,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> np.ndarray:
    """One unit vector a class: the mean of its prompts' unit vectors, divided by its length.

    Section 3.1.4 of arXiv:2103.00020.

    Args:
      encoder: of the model.
      tokenizer: gives (texts, length) int32.
      classes: names, such as "red circle".
      templates: see `prompts_of`.
      should_stop: asked before each batch.

    Returns:
      (classes, embedding) float32.
    """
    means, waiting = [], []

    def embed():
        counts = [len(prompts) for prompts in waiting]
        tokens_ML = tokenizer([prompt for prompts in waiting for prompt in prompts])
        z_ME = encoder.encode_texts(tokens_ML, should_stop=should_stop)
        parts = np.split(z_ME, np.cumsum(counts)[:-1])
        means.extend(part_PE.mean(axis=0) for part_PE in parts)
        waiting.clear()

    for name in classes:
        prompts = prompts_of(name, templates)
        if waiting and sum(map(len, waiting)) + len(prompts) > TEXTS_AT_ONCE:
            embed()
        waiting.append(prompts)
    embed()
    z_SE = np.stack(means)
    return z_SE / np.maximum(np.linalg.norm(z_SE, axis=1, keepdims=True), 1e-12)


def read_classes(path: str, setting: str = "evaluation.classes") -> tuple[str, ...]:
    """Class names from a text file, one a line, in the order of the labels; or "imagenet"."""
    if path == IMAGENET:
        return shipped_lines("imagenet_classes.txt")
    return read_lines(path, setting, "the name of a class")


def read_templates(path: str, setting: str = "evaluation.templates") -> Templates:
    """Prompts from a file; "imagenet" names OpenAI's 80.

    A text file has templates, one a line, each with {} or {c} for the name of the class. A .json
    file has a list of such templates, or an object with the prompts of each class by its name.

    Raises:
      FileNotFoundError, ValueError: there is no such file, or it is of another form.
    """
    if path == IMAGENET:
        return shipped_lines("imagenet_templates.txt")
    if path.lower().endswith(".json"):
        return _read_json(path, setting)
    templates = read_lines(path, setting, "a prompt such as: a photo of a {}.")
    return _check_places(templates, f"{setting}={path}")


def shipped_lines(file: str) -> tuple[str, ...]:
    """The lines of a file of names or templates that the package has."""
    return tuple((SHIPPED / file).read_text("utf-8").rstrip("\n").split("\n"))


def check_prompts(classes: Sequence[str], templates: Templates, where: str):
    """Refuse prompts of classes (a mapping) that leave a class out."""
    if not isinstance(templates, Mapping):
        return
    missing = [name for name in classes if not templates.get(name)]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{where} has no prompts for {len(missing)} of {len(classes)} classes ({shown}): give "
            "each class, by its name in the list of classes, a list of prompts"
        )


def read_lines(path: str, setting: str, content: str) -> tuple[str, ...]:
    """The lines of a text file that hold something; `content` says what, for the messages."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{setting}={path}: there is no such file")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{setting}={path} is not a text file in UTF-8: {error}") from error
    # Not splitlines(): that would also split at characters which a name may hold.
    lines = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not lines:
        raise ValueError(f"{setting}={path} is empty: write on each line {content}")
    return lines


def _read_json(path: str, setting: str) -> Templates:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{setting}={path}: there is no such file")
    try:
        found = parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{setting}={path} is not JSON: {error}") from error
    if isinstance(found, list) and found and all(isinstance(entry, str) for entry in found):
        return _check_places(tuple(found), f"{setting}={path}")
    if isinstance(found, dict) and found and all(map(_is_texts, found.values())):
        return {name: tuple(prompts) for name, prompts in found.items()}
    raise ValueError(
        f"{setting}={path} must be a list of templates with {{}} or {{c}}, or an object that has "
        "for the name of each class a list of prompts"
    )


def _is_texts(value: object) -> bool:
    is_list = isinstance(value, list) and bool(value)
    return is_list and all(isinstance(entry, str) and entry.strip() for entry in value)


def _check_places(templates: tuple[str, ...], where: str) -> tuple[str, ...]:
    for template in templates:
        if not has_place(template):
            raise ValueError(
                f"{where}: the prompt {template!r} has no {{}}; put {{}} or {{c}} where the class "
                "name goes"
            )
    return templates

"""Models in the space of weights: interpolation, soups, the mean of saved steps."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

from clip_jax.config import ModelConfig, TrainConfig
from clip_jax.data.tokenizers.base import Tokenizer
from clip_jax.runs import manifest
from clip_jax.runs.directory import RunDirectory
from clip_jax.weights.load import Loaded

# Tokenizers that split these alike are taken to be one, in whatever files they lie.
TEXTS = ("a photo of a red circle.", "The quick brown fox jumps over the lazy dog; 1,234,567,890!")
PIXELS = ("mean", "std", "interpolation", "resize_mode")


def average_models(loads: Sequence[Callable[[], Loaded]], weights: Sequence[float]) -> Loaded:
    """The average of models, of which one is loaded at a time, with the first one's tokenizer.

    Raises:
      ValueError: see `average` and `check_alike`.
    """
    first = loads[0]()

    def variables():
        for number, load in enumerate(loads, start=1):
            loaded = first if number == 1 else load()
            check_alike(first, loaded, number)
            yield loaded.variables

    return first._replace(variables=average(variables(), weights))


def check_alike(first: Loaded, other: Loaded, number: int):
    """Refuse to average models that compute or read their inputs in other ways; shapes do not tell.

    Raises:
      ValueError: they do; it names the setting.
    """
    ours, theirs = first.model.config, other.model.config
    for side, one, another in (
        ("vision", ours.vision.arithmetic(), theirs.vision.arithmetic()),
        ("text", ours.text.arithmetic(), theirs.text.arithmetic()),
        (
            "preprocess",
            *({name: getattr(c.preprocess, name) for name in PIXELS} for c in (ours, theirs)),
        ),
    ):
        for name in one | another:
            values = another.get(name), one.get(name)
            if values[0] != values[1]:
                raise ValueError(
                    f"model {number} has {side}.{name}={values[0]}, and the first {values[1]}: their "
                    "average would be neither"
                )
    if first.tokenizer is not None and other.tokenizer is not None:
        tokens = [np.asarray(loaded.tokenizer(TEXTS)) for loaded in (first, other)]
        if not np.array_equal(*tokens):
            raise ValueError(
                f"model {number} has another tokenizer than the first: the same number is another "
                "word to it"
            )


def average(models: Iterable[Mapping], weights: Sequence[float]) -> dict:
    """The weighted sum of variables, leaf by leaf, taken in float64 and rounded once.

    With weights (1 - a, a) of a model before and after fine-tuning it is WiSE-FT
    (arXiv:2109.01903), with equal ones a uniform soup (arXiv:2203.05482), with equal ones of a run's
    steps the mean of its last checkpoints (arXiv:1803.05407). One model is in memory at a time.

    Args:
      models: variables as `model.apply` takes them, of one architecture.
      weights: one for each; they add to 1.

    Returns:
      Variables of NumPy's arrays, in the dtype of the first model's.

    Raises:
      ValueError: the weights do not add to 1, or the models are of different architectures.
    """
    if not abs(sum(weights) - 1) <= 1e-6:  # nor if it is no number
        raise ValueError(
            f"--weights {' '.join(map(str, weights))} must add to 1, not {sum(weights)}"
        )
    total, dtypes, structure, expected = [], [], None, {}
    for count, (variables, weight) in enumerate(zip(models, weights, strict=True), start=1):
        paths, this = jax.tree.flatten_with_path(variables)
        shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in paths}
        if structure is None:
            structure, expected = this, shapes
            dtypes = [np.asarray(leaf).dtype for _, leaf in paths]
            total = [np.zeros(np.shape(leaf), np.float64) for _, leaf in paths]
        if shapes != expected:
            odd = sorted(
                k for k in shapes.keys() | expected.keys() if shapes.get(k) != expected.get(k)
            )
            raise ValueError(
                f"model {count} is of another architecture than the first: {odd[0]} is "
                f"{shapes.get(odd[0])}, and {expected.get(odd[0])} in the first"
            )
        for sum_, (_, leaf) in zip(total, paths):
            sum_ += weight * np.asarray(leaf, np.float64)
    assert structure is not None
    leaves = [sum_.astype(dtype) for sum_, dtype in zip(total, dtypes)]
    return jax.tree.unflatten(structure, leaves)


def greedy_soup(scores: Sequence[float], score_of: Callable[[list[int]], float]) -> list[int]:
    """Which models to average: each is kept if the mean with it is at least as good without.

    The greedy soup of arXiv:2203.05482: the models in the order of their own scores.

    Args:
      scores: of each model alone, on held-out data; higher is better.
      score_of: the score of the uniform soup of some models.

    Returns:
      Places of the models that were kept, the best first.
    """
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    kept, best = order[:1], scores[order[0]]
    for place in order[1:]:
        found = score_of([*kept, place])
        if found >= best:
            kept, best = [*kept, place], found
    return kept


def refuse_run(path: str | os.PathLike):
    """Refuse a directory that holds a run.

    Raises:
      ValueError: it does.
    """
    if RunDirectory(path, main=False).holds_run:
        raise ValueError(f"{path} holds a run: name a new directory")


def write_run(
    path: str | os.PathLike,
    config: ModelConfig,
    variables: Mapping,
    *,
    tokenizer: Tokenizer | None,
    settings: TrainConfig | None = None,
):
    """Write variables as a run of one step, 0, which `load`, `eval` and `model.init_from` read.

    Raises:
      ValueError: the directory holds a run.
    """
    refuse_run(path)
    run = RunDirectory(path)
    run.path.mkdir(parents=True, exist_ok=True)
    step = run.checkpoints / "0"
    step.mkdir(parents=True, exist_ok=True)
    parts = {name: jax.tree.map(np.asarray, part) for name, part in variables.items() if part}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(step / "state", parts)
    manifest.write(step)
    if tokenizer is not None:
        tokenizer.save(run.tokenizer)
    run.save_config(settings or TrainConfig(workdir=os.fspath(path)), config)

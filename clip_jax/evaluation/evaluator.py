"""What an evaluator is: a record, with a function of a data set whose images are embedded."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from clip_jax.config import DataConfig, EvaluationConfig, LossConfig
from clip_jax.data.samples import Source
from clip_jax.evaluation.annotations import Annotation
from clip_jax.evaluation.encode import Encoder
from clip_jax.runs.results import Evaluation
from clip_jax.runs.retention import Better

Tokenize = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embedded:
    """A data set as a model embeds it. The same in every process."""

    source: Source
    annotations: Sequence[Annotation]  # of the images that could be read
    z_image_NE: np.ndarray  # their embeddings, float32, unit length
    encoder: Encoder  # of the model, for more texts or images; it has the mesh and the variables
    tokenizer: Tokenize  # gives (texts, length) int32
    tokenize_captions: Tokenize  # the same, which remembers them for the next evaluation
    classes: Sequence[str] | None  # names of the labels
    templates: Sequence[str]  # prompts with {} for the name of a class
    cfg: EvaluationConfig
    data: DataConfig
    loss: LossConfig  # that the model was trained with
    should_stop: Callable[[], bool] | None  # to be asked between batches, see `encode.check_stop`

    @functools.cached_property
    def captions(self) -> list[str]:
        return [text for annotation in self.annotations for text in annotation.captions]

    @functools.cached_property
    def image_of_text_M(self) -> np.ndarray:
        """Which image each caption belongs to."""
        return np.array([n for n, a in enumerate(self.annotations) for _ in a.captions])

    @functools.cached_property
    def z_text_ME(self) -> np.ndarray:
        """The embeddings of the captions, float32, unit length."""
        return self.embed(self.tokenize_captions(self.captions))

    def embed(self, tokens_ML: np.ndarray) -> np.ndarray:
        """The embeddings of texts, float32, unit length."""
        return self.encoder.encode_texts(tokens_ML, should_stop=self.should_stop)

    def has(self, need: str) -> bool:
        """Whether the data set has what an evaluator needs."""
        if need == "classes":
            return bool(self.classes)
        # Where captions are the names of classes, as those of a class folder, none picks an image.
        return not set(self.captions) <= set(self.source.classes or ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """A kind of measurement that `evaluation.metrics` names.

    Attributes:
      measure: a function of a data set whose images are embedded. It returns an `Evaluation` whose
        metrics are logged as eval/NAME, and may call the same functions in all processes.
      metrics: which way each metric that may choose the best checkpoint is better; a `*` in a name
        stands for a group of the data set.
      needs: what a data set must have; on one without it nothing is measured.
      headline: the metric that is shown while training.
    """

    measure: Callable[[Embedded], Evaluation]
    metrics: Mapping[str, Better]
    needs: tuple[Literal["captions", "classes"], ...] = ()
    headline: str | None = None

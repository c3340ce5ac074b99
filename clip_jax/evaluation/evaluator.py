"""What an evaluator is: a record, with a function of a data set whose images are embedded."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from clip_jax.config import DataConfig, EvaluationConfig, LossConfig
from clip_jax.data.samples import Question, Source
from clip_jax.evaluation.annotations import Annotation
from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.prompts import Templates, class_embeddings
from clip_jax.evaluation.ranking import Ranks, nearest, rank
from clip_jax.runs.results import Evaluation
from clip_jax.runs.retention import Better

Tokenize = Callable[[Sequence[str]], np.ndarray]
Need = Literal["captions", "classes", "labels", "groups", "questions", "train"]


class Labelled(NamedTuple):
    """Images of a training set, for probes."""

    z_NE: np.ndarray  # their embeddings, float32, unit length
    label_N: np.ndarray  # their classes


def labelled_images(z_NE: np.ndarray, annotations: Sequence[Annotation]) -> Labelled:
    """Those of some images that have one label."""
    rows = [n for n, annotation in enumerate(annotations) if annotation.label is not None]
    return Labelled(z_NE[rows], np.array([annotations[n].label for n in rows], np.int64))


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
    templates: Templates  # prompts with {} or {c} for the name of a class, or those of each class
    cfg: EvaluationConfig
    data: DataConfig
    loss: LossConfig  # that the model was trained with
    should_stop: Callable[[], bool] | None  # to be asked between batches, see `encode.check_stop`
    train: Callable[[], Labelled] | None = None  # embeds the training set, if there is one

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

    # ------------------------------------------------------------------ images with one class

    @functools.cached_property
    def labelled(self) -> list[int]:
        """Rows of the images that have one label."""
        return [n for n, annotation in enumerate(self.annotations) if annotation.label is not None]

    @functools.cached_property
    def label_N(self) -> np.ndarray:
        """The label of each labelled image.

        Raises:
          ValueError: there are none, or they do not fit the names of the classes.
        """
        if not self.labelled:
            raise ValueError(
                f"{self.source.name} has classes but no sample with a label: take zero_shot out of "
                "evaluation.metrics, or evaluate on data with labels"
            )
        label_N = np.array([self.annotations[n].label for n in self.labelled])
        self.check_labels(int(label_N.max()))
        return label_N

    @property
    def groups(self) -> list[str | None]:
        """The group of each labelled image."""
        return [self.annotations[n].group for n in self.labelled]

    @functools.cached_property
    def z_class_SE(self) -> np.ndarray:
        """One unit vector for each class, see `class_embeddings`."""
        assert self.classes is not None
        return class_embeddings(
            self.encoder, self.tokenizer, self.classes, self.templates, should_stop=self.should_stop
        )

    @functools.cached_property
    def class_ranks(self) -> Ranks:
        """At which place the right class comes for each labelled image; ties are shared out."""
        label_N, classes = self.label_N, np.arange(len(self.z_class_SE))
        return rank(
            self.z_image_NE[self.labelled],
            label_N,
            self.z_class_SE,
            classes,
            mesh=self.encoder.mesh,
            should_stop=self.should_stop,
        )

    @functools.cached_property
    def predicted_N(self) -> np.ndarray:
        """The class that each labelled image is nearest to, of equals the first."""
        _, best_N1 = nearest(
            self.z_image_NE[self.labelled],
            self.z_class_SE,
            mesh=self.encoder.mesh,
            should_stop=self.should_stop,
        )
        return best_N1[:, 0]

    def check_labels(self, highest: int):
        """Refuse labels that the classes have no name for."""
        if self.classes is None or highest < len(self.classes):
            return
        named = f"evaluation.classes={self.cfg.classes}" if self.cfg.classes else self.source.name
        raise ValueError(
            f"{named} names {len(self.classes)} classes, but there are labels up to "
            f"{highest}: name every class, in the order of the labels, the first being 0"
        )

    # ----------------------------------------------------------------------------- probes

    @functools.cached_property
    def _train(self) -> Labelled:
        assert self.train is not None
        train = self.train()
        if not len(train.label_N):
            raise ValueError(f"{self.source.name}: the training set has no image with a label")
        self.check_labels(int(train.label_N.max()))
        return train

    def train_images(self) -> Labelled:
        """The images of the training set that have a label; embedded once."""
        return self._train

    # -------------------------------------------------------------------------- questions

    @property
    def questions(self) -> Sequence[Question]:
        """Choices between images and texts, where the source has some."""
        return getattr(self.source, "questions", None) or ()

    def question_scores(self) -> list[tuple[Question, np.ndarray]]:
        """The questions all of whose images can be used, with the (images, texts) cosines of each."""
        row_of = {annotation.index: row for row, annotation in enumerate(self.annotations)}
        usable = [q for q in self.questions if all(image in row_of for image in q.images)]
        texts = list(dict.fromkeys(text for question in usable for text in question.texts))
        if not usable:
            raise ValueError(f"{self.source.name} has no question whose images can all be used")
        place_of = {text: place for place, text in enumerate(texts)}
        z_ME = self.embed(self.tokenize_captions(texts))
        found = []
        for question in usable:
            z_image_IE = self.z_image_NE[[row_of[image] for image in question.images]]
            z_text_TE = z_ME[[place_of[text] for text in question.texts]]
            found.append((question, z_image_IE @ z_text_TE.T))
        return found

    def has(self, need: Need) -> bool:
        """Whether the data set has what an evaluator needs."""
        if need == "classes":
            several = any(annotation.labels is not None for annotation in self.annotations)
            return bool(self.classes) and not several
        if need == "labels":
            several = any(annotation.labels is not None for annotation in self.annotations)
            return bool(self.classes) and several
        if need == "groups":
            return bool(self.labelled) and any(group is not None for group in self.groups)
        if need == "questions":
            return bool(self.questions)
        if need == "train":
            return self.train is not None
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
    needs: tuple[Need, ...] = ()
    headline: str | None = None

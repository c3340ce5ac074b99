"""All that is measured of a model on a data set: loss, zero-shot accuracy, retrieval, examples."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.config import DataConfig, EvaluationConfig, LossConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.loader import eval_batches
from clip_jax.data.samples import Source
from clip_jax.evaluation.annotations import Annotation, read_annotations
from clip_jax.evaluation.encode import Encoder, Stopped, put
from clip_jax.evaluation.evaluators.retrieval import retrieval
from clip_jax.evaluation.evaluators.zero_shot import (
    SIMPLE_TEMPLATES,
    class_accuracy,
    class_embeddings,
    read_classes,
    read_templates,
    zero_shot,
    zero_shot_ranks,
)
from clip_jax.evaluation.examples import choose_examples
from clip_jax.evaluation.results import ClassResult, Evaluation
from clip_jax.losses.objective import kind_for, make_objective
from clip_jax.models.clip import CLIP, Outputs

ShouldStop = Callable[[], bool] | None
TILE = 1024  # rows of a batch's similarities that a device holds at once


class Evaluator:
    """Measures a model on one data set as often as it is called, each time with other variables.

    Captions are read and tokenized, and programs compiled, the first time alone.

    Args:
      model: its preprocessing and image size are used.
      mesh: all of its devices take part.
      source: of the images and captions.
      tokenizer: the model's.
      cfg: what is measured.
      data: how images are read.
      ledger: counts samples that cannot be read.

    Raises:
      ValueError: the batch does not divide over the devices, or a file of classes or templates
        cannot be used. It is raised here, before the hours of training.
      FileNotFoundError: such a file is not there.
    """

    def __init__(
        self,
        model: CLIP,
        mesh: Mesh,
        source: Source,
        tokenizer: Callable[[Sequence[str]], np.ndarray],
        *,
        cfg: EvaluationConfig,
        data: DataConfig,
        ledger: BadSamples | None = None,
    ):
        sharding.check_batch("evaluation.batch_size", cfg.batch_size, mesh)
        self._model, self._mesh, self._source, self._tokenizer = model, mesh, source, tokenizer
        self._cfg, self._data, self._ledger = cfg, data, ledger
        self._classes = read_classes(cfg.classes) if cfg.classes else source.classes
        self._templates = source.templates or SIMPLE_TEMPLATES
        if cfg.templates:
            self._templates = read_templates(cfg.templates)
        self._known: dict[int, Annotation] = {}  # by index
        self._tokens: dict[str, np.ndarray] = {}  # of each caption

    def __call__(self, variables: Any, *, should_stop: ShouldStop = None) -> Evaluation | None:
        """Measure the model with these variables.

        Args:
          variables: of the model, as `model.apply` takes them, wherever they are.
          should_stop: asked between batches, equally often in every process.

        Returns:
          What was found, or None if `should_stop` ended it.

        Raises:
          ValueError: no sample can be used, or labels and classes do not fit.
        """
        try:
            return self._measure(variables, should_stop)
        except Stopped:
            return None

    def _measure(self, variables: Any, should_stop: ShouldStop) -> Evaluation:
        encoder = Encoder(self._model, variables, self._mesh, batch_size=self._cfg.batch_size)
        z_image_NE, annotations = self._images(encoder, should_stop)
        metrics = {"eval/samples": float(len(annotations))}
        classes, examples = (), None
        captions = [text for a in annotations for text in a.captions]
        # Where captions are the names of classes, as those of a class folder, none picks an image.
        if self._cfg.retrieval and not set(captions) <= set(self._source.classes or ()):
            owner = [n for n, a in enumerate(annotations) for _ in a.captions]
            image_of_text_M = np.array(owner)
            z_text_ME = encoder.encode_texts(self._tokenized(captions), should_stop=should_stop)
            pairs = z_image_NE, z_text_ME, image_of_text_M
            metrics["eval/loss"] = self._loss(encoder.variables["params"], *pairs)
            found = retrieval(*pairs, mesh=self._mesh, should_stop=should_stop)
            metrics |= {f"eval/{name}": value for name, value in found.items()}
            if jax.process_index() == 0:
                limit = self._data.max_image_pixels
                examples = choose_examples(*pairs, captions, annotations, self._source, limit)
        if self._cfg.zero_shot and self._classes:
            found, classes = self._zero_shot(encoder, z_image_NE, annotations, should_stop)
            metrics |= {f"eval/zero_shot_{name}": value for name, value in found.items()}
        return Evaluation(metrics=metrics, classes=classes, examples=examples)

    def _images(self, encoder: Encoder, should_stop: ShouldStop):
        """The embeddings of all usable images, and what is known of these images."""
        batches = eval_batches(
            self._source,
            self._tokenizer,
            self._data,
            batch_size=self._cfg.batch_size,
            image_size=self._model.config.vision.image_size,
            preprocess=self._model.config.preprocess,
            max_samples=self._cfg.max_samples,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            ledger=self._ledger,
        )
        with batches:
            z_NE, index_N = encoder.encode_images(batches, should_stop=should_stop)
        if not len(index_N):
            raise ValueError(f"{self._source.name}: not one of its samples can be evaluated")
        # The same images are usable in every process, so all of them read, or none does.
        if unknown := [index for index in index_N.tolist() if index not in self._known]:
            read = read_annotations(self._source, unknown)
            self._known |= {annotation.index: annotation for annotation in read}
        return z_NE, [self._known[index] for index in index_N.tolist()]

    def _tokenized(self, captions: Sequence[str]) -> np.ndarray:
        """(captions, length) int32."""
        unknown = list(dict.fromkeys(text for text in captions if text not in self._tokens))
        if unknown:
            self._tokens |= zip(unknown, np.asarray(self._tokenizer(unknown), np.int32))
        return np.stack([self._tokens[text] for text in captions])

    def _loss(self, params: dict, z_image_NE, z_text_ME, image_of_text_M) -> float:
        """The mean loss of batches as large as in training, each image with its first caption.

        The batches are drawn at random, the same ones each time, because a data set often has what
        is alike side by side. Where there are fewer pairs than a batch has, they are the batch,
        less those that do not divide over the devices.
        """
        image_N, first_N = np.unique(image_of_text_M, return_index=True)
        order = np.random.default_rng(0).permutation(len(image_N))
        size = min(self._data.batch_size, len(order))
        split = size >= self._mesh.size
        if split:
            size -= size % self._mesh.size
        place = (sharding.batch_sharding if split else sharding.replicated)(self._mesh)
        scalars = jax.numpy.exp(params["logit_scale"]), params.get("logit_bias")
        loss = _batch_loss(self._mesh, LossConfig(kind=kind_for(params)), split)
        values = []
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            z_image_BE = put(z_image_NE[image_N[rows]], place)
            z_text_BE = put(z_text_ME[first_N[rows]], place)
            values.append(loss(Outputs(z_image_BE, z_text_BE, *scalars))[0])
        return float(np.mean(jax.device_get(values)))

    def _zero_shot(self, encoder: Encoder, z_image_NE, annotations, should_stop: ShouldStop):
        """Accuracies, and the result of each class."""
        chosen = [n for n, annotation in enumerate(annotations) if annotation.label is not None]
        label_N = np.array([annotations[n].label for n in chosen])
        groups = [annotations[n].group for n in chosen]
        if not chosen:
            raise ValueError(
                f"{self._source.name} has classes but no sample with a label: set "
                "evaluation.zero_shot to false, or evaluate on data with labels"
            )
        if label_N.max() >= len(self._classes):
            where = f"evaluation.classes={self._cfg.classes}"
            raise ValueError(
                f"{where if self._cfg.classes else self._source.name} names {len(self._classes)} "
                f"classes, but there are labels up to {label_N.max()}: name every class, in the "
                "order of the labels, the first being 0"
            )
        z_class_SE = class_embeddings(
            encoder, self._tokenizer, self._classes, self._templates, should_stop=should_stop
        )
        ranks = zero_shot_ranks(
            z_image_NE[chosen], label_N, z_class_SE, mesh=self._mesh, should_stop=should_stop
        )
        found = zero_shot(ranks, label_N, groups)
        metrics = {name.replace("/", "_"): value for name, value in found.items()}
        metrics["chance"] = 1 / len(self._classes)
        accuracy = class_accuracy(ranks.found(1), label_N)
        return metrics, tuple(
            ClassResult(
                name=self._classes[label],
                group=_common([group for group, other in zip(groups, label_N) if other == label]),
                images=int((label_N == label).sum()),
                accuracy=value,
            )
            for label, value in accuracy.items()
        )


def evaluate(
    model: CLIP,
    variables: Any,
    mesh: Mesh,
    source: Source,
    tokenizer: Callable[[Sequence[str]], np.ndarray],
    *,
    cfg: EvaluationConfig,
    data: DataConfig,
    should_stop: ShouldStop = None,
) -> Evaluation | None:
    """Measure a model once: an `Evaluator`, made and called."""
    evaluator = Evaluator(model, mesh, source, tokenizer, cfg=cfg, data=data)
    return evaluator(variables, should_stop=should_stop)


@functools.lru_cache(maxsize=4)
def _batch_loss(mesh: Mesh, cfg: LossConfig, split: bool) -> Callable[..., jax.Array]:
    """The loss of a batch, split over the devices or whole on each; compiled once."""
    objective, _ = make_objective(cfg).of_embeddings(tile=TILE if split else None)
    loss = functools.partial(objective, batch={}, mesh=mesh if split else None)
    return jax.jit(loss, out_shardings=sharding.replicated(mesh))


def _common(groups: Sequence[str | None]) -> str | None:
    """The group that all are in; None where they differ."""
    return groups[0] if len(set(groups)) == 1 else None

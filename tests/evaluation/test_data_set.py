"""A whole evaluation of a tiny model on one data set."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import losses
from clip_jax.config import CheckpointConfig, DataConfig, EvaluationConfig, LossConfig, TrainConfig
from clip_jax.data.images.transforms import eval_image
from clip_jax.evaluation.suite import Evaluators, best_direction
from clip_jax.models.clip import create_model

DATA = DataConfig(threads=1)


def evaluator(model, mesh, source, tokenizer, *, cfg, data=DATA, loss=LossConfig()):  # noqa: B008
    return Evaluators(source, {}, model, mesh, tokenizer, cfg=cfg, data=data, loss=loss)


def evaluate(model, variables, mesh, source, tokenizer, *, should_stop=None, **settings):
    return evaluator(model, mesh, source, tokenizer, **settings)(variables, should_stop=should_stop)


@pytest.fixture
def parts(model, variables, mesh, source, tokenizer):
    return model, variables, mesh, source, tokenizer


def test_an_evaluation_measures_loss_classification_and_retrieval(parts):
    evaluation = evaluate(*parts, cfg=EvaluationConfig(batch_size=8), data=DATA)
    metrics = evaluation.metrics
    for name in ("loss", "zero_shot_top1", "zero_shot_top5", "zero_shot_held_out_top1",
                 "zero_shot_seen_top1", "zero_shot_mean_per_class", "text_to_image_recall_at_1",
                 "image_to_text_recall_at_10", "text_to_image_mean_rank"):  # fmt: skip
        assert np.isfinite(metrics[f"eval/{name}"])
    assert metrics["eval/zero_shot_chance"] == pytest.approx(1 / 3)
    assert metrics["eval/samples"] == 21
    assert [(c.name, c.group, c.images) for c in evaluation.classes] == [
        ("red", "seen", 7), ("green", "seen", 7), ("blue", "held_out", 7),
    ]  # fmt: skip
    by_class = [c.accuracy for c in evaluation.classes]
    assert metrics["eval/zero_shot_mean_per_class"] == pytest.approx(np.mean(by_class))
    assert metrics["eval/zero_shot_held_out_top1"] == pytest.approx(by_class[2])
    assert all(isinstance(value, float) for value in metrics.values())
    for name in metrics:  # a run may keep its best checkpoint by each of these
        if not name.endswith(("samples", "chance")):
            best_direction(TrainConfig(checkpoint=CheckpointConfig(keep_best_by=name)))


def encoded(apply, model, variables, source, tokenizer):
    """Embeddings without an encoder: images, and first captions."""
    samples = [source[i] for i in range(len(source))]
    images = [eval_image(s.image, model.config.preprocess, 16, 10_000) for s in samples]
    z_NE = apply(model, "encode_image", variables, np.stack(images))
    tokens = tokenizer([s.captions[0] for s in samples])
    return z_NE, apply(model, "encode_text", variables, tokens)


def test_the_loss_of_a_set_within_one_batch_is_the_loss_of_the_set(
    apply, model, variables, mesh, memory_source, tokenizer
):
    source, cfg = memory_source(24), EvaluationConfig(batch_size=8)
    evaluation = evaluate(model, variables, mesh, source, tokenizer, cfg=cfg, data=DATA)
    scale = jnp.exp(variables["params"]["logit_scale"])
    expected = losses.replicated_softmax_loss(
        *encoded(apply, model, variables, source, tokenizer), scale
    )
    assert evaluation.metrics["eval/loss"] == pytest.approx(float(expected), abs=1e-5)


def test_the_loss_is_of_batches_as_large_as_in_training(parts):
    """It grows with the batch, as there are more captions to tell apart."""
    cfg = EvaluationConfig(batch_size=8)
    values = [
        evaluate(*parts, cfg=cfg, data=DataConfig(threads=1, batch_size=size)).metrics["eval/loss"]
        for size in (4, 8, 256)
    ]
    assert values[0] < values[1] < values[2]


def test_the_loss_does_not_depend_on_what_lies_side_by_side_in_a_data_set(
    apply, model, variables, mesh, memory_source, tokenizer
):
    """Neighbours are often alike: batches of neighbours would be harder than those of training."""
    source, cfg = memory_source(24), EvaluationConfig(batch_size=8)
    data = DataConfig(threads=1, batch_size=8)
    found = evaluate(model, variables, mesh, source, tokenizer, cfg=cfg, data=data)
    z_image_NE, z_text_NE = encoded(apply, model, variables, source, tokenizer)
    scale = jnp.exp(variables["params"]["logit_scale"])

    def mean_loss(order_N):
        rows = order_N.reshape(-1, 8)
        return np.mean(
            [losses.replicated_softmax_loss(z_image_NE[r], z_text_NE[r], scale) for r in rows]
        )

    shuffled = mean_loss(np.random.default_rng(0).permutation(24))
    assert found.metrics["eval/loss"] == pytest.approx(float(shuffled), abs=1e-5)
    assert abs(float(mean_loss(np.arange(24))) - float(shuffled)) > 1e-4


def test_a_model_is_measured_by_the_loss_that_it_was_trained_with(
    apply, mesh, memory_source, tokenizer, variables
):
    source = memory_source(24)
    config = dataclasses.replace(create_model("ViT-test").config, init_logit_bias=-10.0)
    model = create_model(config)
    biased = {"params": variables["params"] | {"logit_bias": jnp.array(-10.0)}}
    cfg = EvaluationConfig(batch_size=64)
    loss = LossConfig(kind="sigmoid")
    evaluation = evaluate(model, biased, mesh, source, tokenizer, cfg=cfg, data=DATA, loss=loss)
    scale = jnp.exp(variables["params"]["logit_scale"])
    z_image_NE, z_text_NE = encoded(apply, model, biased, source, tokenizer)
    expected = losses.replicated_sigmoid_loss(z_image_NE, z_text_NE, scale, jnp.array(-10.0))
    assert evaluation.metrics["eval/loss"] == pytest.approx(float(expected), rel=1e-4)


def test_a_second_evaluation_reads_no_captions_again_and_sees_the_new_parameters(
    model, variables, mesh, source, tokenizer
):
    measure = evaluator(model, mesh, source, tokenizer, cfg=EvaluationConfig(batch_size=8))
    first = measure(variables)
    reads = source.reads
    changed = jax.tree.map(
        lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), variables
    )
    second = measure(changed)
    pictures = len(second.examples.pictures)
    assert source.reads - reads == len(source) + pictures
    assert first.metrics["eval/loss"] != second.metrics["eval/loss"]
    assert measure(variables) == first


@pytest.mark.parametrize("after", [0, 2, 4, 6, 8])
def test_an_evaluation_ends_with_nothing_when_asked_to_stop(parts, after):
    answers = iter([False] * after + [True] * 100)
    cfg = EvaluationConfig(batch_size=8)
    assert evaluate(*parts, cfg=cfg, data=DATA, should_stop=lambda: next(answers)) is None
    assert len(list(answers)) == 99


def test_parts_can_be_left_out(parts):
    cfg = EvaluationConfig(batch_size=8, metrics=())
    assert evaluate(*parts, cfg=cfg, data=DATA).metrics == {"eval/samples": 21.0}
    evaluation = evaluate(*parts, cfg=dataclasses.replace(cfg, metrics=("zero_shot",)), data=DATA)
    assert evaluation.examples is None and "eval/zero_shot_top1" in evaluation.metrics


def test_a_source_without_classes_is_not_classified(parts):
    parts[3].classes = None
    metrics = evaluate(*parts, cfg=EvaluationConfig(batch_size=8), data=DATA).metrics
    assert not any(name.startswith("eval/zero_shot") for name in metrics)


def test_samples_that_cannot_be_read_are_left_out(model, variables, mesh, memory_source, tokenizer):
    source = memory_source(21, bad=(4, 20))
    data = dataclasses.replace(DATA, max_bad_share=0.5)
    cfg = EvaluationConfig(batch_size=8)
    evaluation = evaluate(model, variables, mesh, source, tokenizer, cfg=cfg, data=data)
    assert evaluation.metrics["eval/samples"] == 19


def test_max_samples_takes_that_many(parts):
    cfg = EvaluationConfig(batch_size=8, max_samples=7)
    assert evaluate(*parts, cfg=cfg, data=DATA).metrics["eval/samples"] == 7


def test_class_names_and_prompts_of_files_are_used(parts, tmp_path):
    classes, templates = tmp_path / "classes.txt", tmp_path / "templates.txt"
    classes.write_text("crimson\nlime\nnavy\nnever seen\n")
    templates.write_text("{}\n")
    cfg = EvaluationConfig(batch_size=8, classes=str(classes), templates=str(templates))
    evaluation = evaluate(*parts, cfg=cfg, data=DATA)
    assert [c.name for c in evaluation.classes] == ["crimson", "lime", "navy"]
    assert evaluation.metrics["eval/zero_shot_chance"] == 0.25


def test_labels_beyond_the_classes_are_refused(parts, tmp_path):
    file = tmp_path / "classes.txt"
    file.write_text("red\ngreen\n")
    cfg = EvaluationConfig(batch_size=8, classes=str(file))
    with pytest.raises(
        ValueError, match=r"classes\.txt names 2 classes, but there are labels up to 2"
    ):
        evaluate(*parts, cfg=cfg, data=DATA)


def test_classes_without_labels_are_refused(model, variables, mesh, memory_source, tokenizer):
    class Unlabelled(memory_source):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), label=None)

    cfg = EvaluationConfig(batch_size=8)
    with pytest.raises(ValueError, match="memory has classes but no sample with a label"):
        evaluate(model, variables, mesh, Unlabelled(9), tokenizer, cfg=cfg, data=DATA)


def test_a_source_of_which_nothing_can_be_read_is_refused(
    model, variables, mesh, memory_source, tokenizer
):
    source, data = memory_source(3, bad=(0, 1, 2)), dataclasses.replace(DATA, max_bad_share=1.0)
    with pytest.raises(ValueError, match="memory: not one of its samples can be evaluated"):
        evaluate(
            model, variables, mesh, source, tokenizer, cfg=EvaluationConfig(batch_size=8), data=data
        )


def test_settings_that_cannot_work_are_refused_before_anything_is_read(
    model, mesh, source, tokenizer, tmp_path
):
    def make(**changes):
        cfg = EvaluationConfig(**{"batch_size": 8} | changes)
        return evaluator(model, mesh, source, tokenizer, cfg=cfg)

    with pytest.raises(ValueError, match=r"evaluation\.batch_size=12 does not divide"):
        make(batch_size=12)
    with pytest.raises(ValueError, match=r"evaluation\.metrics='los'.* the nearest is 'loss'"):
        make(metrics=("los",))
    with pytest.raises(ValueError, match=r"evaluation\.metrics='math:tau' is float"):
        make(metrics=("math:tau",))
    with pytest.raises(FileNotFoundError, match=r"evaluation\.classes="):
        make(classes=str(tmp_path / "none.txt"))
    with pytest.raises(FileNotFoundError, match=r"evaluation\.templates="):
        make(templates=str(tmp_path / "none.txt"))
    assert source.reads == 0

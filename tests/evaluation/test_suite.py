"""Several data sets in one evaluation."""

import pytest

from clip_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    TrainConfig,
)
from clip_jax.evaluation import suite
from clip_jax.evaluation.suite import Evaluators, best_direction, open_others

DATA, CFG, LOSS = DataConfig(threads=1), EvaluationConfig(batch_size=8), LossConfig()


@pytest.fixture
def parts(model, mesh, tokenizer):
    return model, mesh, tokenizer


def test_each_data_set_has_the_figures_that_it_has_alone(parts, variables, source, memory_source):
    other = memory_source(9)
    alone = [
        Evaluators(each, {}, *parts, cfg=CFG, data=DATA, loss=LOSS)(variables)
        for each in (source, other)
    ]
    both = Evaluators(source, {"small": other}, *parts, cfg=CFG, data=DATA, loss=LOSS)(variables)
    expected = {f"eval/small/{k.removeprefix('eval/')}": v for k, v in alone[1].metrics.items()}
    assert both.metrics == pytest.approx(alone[0].metrics | expected)
    assert both.metrics["eval/small/samples"] == 9
    assert both.classes == alone[0].classes


def test_the_class_names_of_the_settings_are_the_first_ones(
    parts, variables, source, memory_source, tmp_path
):
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    classes = str(tmp_path / "classes.txt")
    cfg = EvaluationConfig(batch_size=8, classes=classes, metrics=("zero_shot",))
    both = Evaluators(source, {"same": memory_source(21)}, *parts, cfg=cfg, data=DATA, loss=LOSS)
    found = both(variables)
    assert [each.name for each in found.classes] == ["one", "two", "three"]
    plain = Evaluators(source, {}, *parts, cfg=CFG, data=DATA, loss=LOSS)(variables).metrics
    for name in ("zero_shot_mean_per_class", "zero_shot_top1"):
        assert found.metrics[f"eval/same/{name}"] == pytest.approx(plain[f"eval/{name}"])


def test_a_request_to_stop_ends_it_in_any_of_them(parts, variables, source, memory_source):
    evaluators = Evaluators(
        source, {"more": memory_source(21)}, *parts, cfg=CFG, data=DATA, loss=LOSS
    )
    asked = []

    def count() -> bool:
        asked.append(0)
        return False

    assert evaluators(variables, should_stop=count)
    for last in (1, len(asked) - 1):
        answers = iter([False] * last + [True])
        assert evaluators(variables, should_stop=lambda: next(answers)) is None  # noqa: B023


def test_the_others_are_opened_by_name(monkeypatch):
    monkeypatch.setattr(suite.registry, "open_source", lambda spec, split, cfg: (spec, split))
    cfg = DataConfig(eval_also=("coco=tfds:coco_captions", "in-v2=pairs:a=b.csv"))
    assert open_others(cfg) == {
        "coco": ("tfds:coco_captions", "test"),
        "in-v2": ("pairs:a=b.csv", "test"),
    }
    for entry in ("tfds:coco", "a/b=shapes", "=shapes", "coco="):
        with pytest.raises(ValueError, match=rf"data.eval_also has '{entry}': write NAME=SOURCE"):
            open_others(DataConfig(eval_also=(entry,)))
    with pytest.raises(ValueError, match="two data sets a:"):
        open_others(DataConfig(eval_also=("a=shapes", "a=shapes")))


def test_an_evaluator_is_left_out_where_the_data_lack_what_it_needs(parts, variables, source):
    source.classes = None
    cfg = EvaluationConfig(batch_size=8, metrics=("zero_shot", "loss"))
    found = Evaluators(source, {}, *parts, cfg=cfg, data=DATA, loss=LOSS)(variables)
    assert set(found.metrics) == {"eval/samples", "eval/loss"}


def test_a_loss_that_the_model_has_no_scalar_for_is_refused(parts, variables, source):
    loss = LossConfig(kind="sigmoid")
    measure = Evaluators(source, {}, *parts, cfg=CFG, data=DATA, loss=loss)
    with pytest.raises(ValueError, match="this loss needs a model that has a logit_bias"):
        measure(variables)


# ----------------------------------------------------------------------- the best checkpoint


def best_by(name: str, **evaluation) -> TrainConfig:
    return TrainConfig(
        checkpoint=CheckpointConfig(keep_best_by=name),
        data=DataConfig(eval_also=("imagenet=shapes", "gloss=shapes")),
        evaluation=EvaluationConfig(**evaluation),
    )


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("eval/loss", "lower"),
        ("eval/gloss/zero_shot_top1", "higher"),
        ("eval/text_to_image_recall_at_1", "higher"),
        ("eval/image_to_text_median_rank", "lower"),
        ("eval/zero_shot_held_out_top1", "higher"),
        ("eval/imagenet/zero_shot_top1", "higher"),
        ("eval/imagenet/loss", "lower"),
    ],
)
def test_the_record_of_an_evaluator_says_which_way_its_metrics_are_better(name, better):
    assert best_direction(best_by(name)) == better


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("eval/zero_shot_top_1", "eval/zero_shot_top1"),
        ("zero_shot_top1", "eval/zero_shot_top1"),
        ("eval/other/loss", "eval/loss"),
        ("loss", "eval/loss"),
        ("eval/samples", "eval/loss"),
    ],
)
def test_a_mistyped_metric_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"keep_best_by={name} is no metric .*{nearest}"):
        best_direction(best_by(name))


def test_a_metric_that_no_evaluator_measures_is_no_choice():
    with pytest.raises(ValueError, match=r"eval/loss is no metric of evaluation.metrics=zero_shot"):
        best_direction(best_by("eval/loss", metrics=("zero_shot",)))


def test_names_of_a_setting_must_fit_the_class_folders(parts, source, tmp_path):
    source.folders = ("class1", "class10", "class2")
    (tmp_path / "names.txt").write_text("one\ntwo\nten\n")
    cfg = EvaluationConfig(classes=str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match=r"evaluation\.classes=.*whether class2 or class10"):
        Evaluators(source, {}, *parts, cfg=cfg, data=DATA, loss=LOSS)

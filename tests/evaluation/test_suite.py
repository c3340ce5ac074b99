"""Several data sets in one evaluation."""

import pytest
from clip_jax.evaluation.evaluate import evaluate

from clip_jax.config import DataConfig, EvaluationConfig
from clip_jax.evaluation import suite
from clip_jax.evaluation.suite import Evaluators, open_others

DATA, CFG = DataConfig(threads=1), EvaluationConfig(batch_size=8)


@pytest.fixture
def parts(model, mesh, tokenizer):
    return model, mesh, tokenizer


def test_each_data_set_has_the_figures_that_it_has_alone(
    parts, model, mesh, tokenizer, variables, source, memory_source
):
    other = memory_source(9)
    alone = [
        evaluate(model, variables, mesh, each, tokenizer, cfg=CFG, data=DATA)
        for each in (source, other)
    ]
    both = Evaluators(source, {"small": other}, *parts, cfg=CFG, data=DATA)(variables)
    expected = {f"eval/small/{k.removeprefix('eval/')}": v for k, v in alone[1].metrics.items()}
    assert both.metrics == pytest.approx(alone[0].metrics | expected)
    assert both.metrics["eval/small/samples"] == 9
    assert both.classes == alone[0].classes


def test_the_class_names_of_the_settings_are_the_first_ones(
    parts, variables, source, memory_source, tmp_path
):
    (tmp_path / "classes.txt").write_text("one\ntwo\nthree\n")
    cfg = EvaluationConfig(batch_size=8, classes=str(tmp_path / "classes.txt"), retrieval=False)
    both = Evaluators(source, {"same": memory_source(21)}, *parts, cfg=cfg, data=DATA)
    found = both(variables)
    assert [each.name for each in found.classes] == ["one", "two", "three"]
    plain = Evaluators(source, {}, *parts, cfg=CFG, data=DATA)(variables).metrics
    for name in ("zero_shot_mean_per_class", "zero_shot_top1"):
        assert found.metrics[f"eval/same/{name}"] == pytest.approx(plain[f"eval/{name}"])


def test_a_request_to_stop_ends_it_in_any_of_them(parts, variables, source, memory_source):
    evaluators = Evaluators(source, {"more": memory_source(21)}, *parts, cfg=CFG, data=DATA)
    asked = []

    def count() -> bool:
        asked.append(0)
        return False

    assert evaluators(variables, should_stop=count)
    for last in (1, len(asked) - 1):
        answers = iter([False] * last + [True])
        assert evaluators(variables, should_stop=lambda: next(answers)) is None  # noqa: B023


def test_the_others_are_opened_by_name(monkeypatch):
    monkeypatch.setattr(suite.sources, "open_source", lambda spec, split, cfg: (spec, split))
    cfg = DataConfig(eval_also=("coco=tfds:coco_captions", "in-v2=pairs:a=b.csv"))
    assert open_others(cfg) == {
        "coco": ("tfds:coco_captions", "test"),
        "in-v2": ("pairs:a=b.csv", "test"),
    }
    for entry in ("tfds:coco", "a/b=shapes", "=shapes", "coco=", "gloss=shapes"):
        with pytest.raises(ValueError, match=rf"data.eval_also has '{entry}': write NAME=SOURCE"):
            open_others(DataConfig(eval_also=(entry,)))
    with pytest.raises(ValueError, match="two data sets a:"):
        open_others(DataConfig(eval_also=("a=shapes", "a=shapes")))

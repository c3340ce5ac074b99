"""Which charts are drawn and what they say."""

import math

from clip_jax.runs.report.charts import charts, cosine

LOSSES = {step: {"loss": 4.0 - step / 50} for step in range(10, 101, 10)}


def test_only_what_was_measured_is_drawn():
    assert charts({}, None) == []
    assert [chart["title"] for chart in charts(LOSSES, None)] == ["Loss"]


def test_a_single_point_of_training_is_no_curve():
    assert charts({10: {"loss": 4.0}}, None) == []


def test_the_loss_alone_has_the_line_of_guessing_where_it_is_known():
    metrics = {step: values | {"logit_scale": 14.0} for step, values in LOSSES.items()}
    loss, scale = charts(metrics, math.log(64))
    assert (loss["level"], scale["level"]) == ("guessing 4.16", None)
    assert charts(LOSSES, None)[0]["level"] is None


def test_an_evaluation_at_the_end_joins_the_curve_of_training_but_makes_none_of_its_own():
    metrics = LOSSES | {100: LOSSES[100] | {"eval/loss": 2.5, "eval/zero_shot_top1": 0.9}}
    (chart,) = charts(metrics, None)
    assert chart["legend"] == [("training", "2"), ("evaluation", "2.5")]


def test_legend_and_colors_stay_together_when_a_metric_is_missing():
    metrics = {step: {"grad_norm_text": 1.0 + step} for step in (0, 5)}
    (chart,) = charts(metrics, None)
    assert chart["legend"] == [("text tower", "6")]
    assert "var(--series-1)" in chart["svg"] and "var(--series-2)" not in chart["svg"]
    assert chart["alt"] == "Gradient norm: text tower from 1 at step 0 to 6 at step 5"


def test_shares_are_drawn_and_told_in_percent():
    metrics = {step: {"accuracy_image_to_text": 0.25} for step in (10, 20)}
    (chart,) = charts(metrics, None)
    assert chart["legend"] == [("image to text", "25.0 %")]
    assert "image to text from 25 at step 10" in chart["alt"]


def test_a_cosine_has_two_digits_a_true_minus_and_no_minus_before_zero():
    assert [cosine(x) for x in (0.256, -0.001, -0.5)] == ["0.26", "0.00", "\N{MINUS SIGN}0.50"]

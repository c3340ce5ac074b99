"""Which curves a report shows, and what it says of them in words."""

from collections.abc import Callable
from typing import NamedTuple

from clip_jax.runs.report import figures


def plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cosine(value: float) -> str:
    """Two digits, a true minus, and no minus before zero."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


class Chart(NamedTuple):
    """One small chart of metrics.jsonl."""

    title: str
    lines: tuple[tuple[str, str], ...]  # the metric's name, and what it is called on the page
    say: Callable[[float], str] = plain
    factor: float = 1.0  # from the metric to the axis


CHARTS = (
    Chart("Loss", (("loss", "training"), ("eval/loss", "evaluation"))),
    Chart(
        "Accuracy within the batch, %",
        (("accuracy_image_to_text", "image to text"), ("accuracy_text_to_image", "text to image")),
        share,
        100,
    ),
    Chart(
        "Cosine similarity",
        (("cosine_pairs", "matching pairs"), ("cosine_others", "all others")),
        cosine,
    ),
    Chart(
        "Zero-shot accuracy, %",
        (
            ("eval/zero_shot_top1", "all"),
            ("eval/zero_shot_held_out_top1", "held out"),
            ("eval/zero_shot_seen_top1", "seen"),
        ),
        share,
        100,
    ),
    Chart(
        "Recall at 1, %",
        (
            ("eval/text_to_image_recall_at_1", "text to image"),
            ("eval/image_to_text_recall_at_1", "image to text"),
        ),
        share,
        100,
    ),
    Chart("Logit scale (1 / temperature)", (("logit_scale", ""),)),
    Chart("Learning rate", (("learning_rate", ""),)),
    Chart("Gradient norm", (("grad_norm_image", "image tower"), ("grad_norm_text", "text tower"))),
    Chart("Images a second", (("images_per_second", ""),)),
    Chart("Time spent waiting for data, %", (("data_wait_share", ""),), share, 100),
)


def charts(metrics: dict[int, dict[str, float]], guessing: float | None) -> list[dict]:
    """The charts for which there are numbers, each with its SVG, its legend and a description.

    `guessing` is the loss of a model that tells no pair from another, where it is known.
    """
    drawn = []
    for number, chart in enumerate(CHARTS):
        lines, legend = [], []
        for name, label in chart.lines:
            points = {step: m[name] for step, m in metrics.items() if name in m}
            evaluated = name.startswith("eval/")
            # An evaluation at the end alone stands in the tables; a single dot is no curve.
            if len(points) < (1 if evaluated and lines else 2):
                continue
            values = [chart.factor * value for value in points.values()]
            lines.append(figures.Line(list(points), values, dots=evaluated))
            legend.append((label, chart.say(list(points.values())[-1])))
        if not lines:
            continue
        level = guessing if chart.title == "Loss" else None
        drawn.append(
            {
                "title": chart.title,
                "legend": legend,
                "level": None if level is None else f"guessing {plain(level)}",
                "alt": _in_words(chart.title, legend, lines),
                "svg": figures.line_chart(f"chart{number}", lines, level=level),
            }
        )
    return drawn


def _in_words(title: str, legend: list[tuple[str, str]], lines: list[figures.Line]) -> str:
    """For who does not see the chart."""
    ends = [
        f"{label or 'value'} from {plain(line.values[0])} at step {line.steps[0]:,} "
        f"to {plain(line.values[-1])} at step {line.steps[-1]:,}"
        for (label, _), line in zip(legend, lines)
    ]
    return f"{title}: {'; '.join(ends)}"

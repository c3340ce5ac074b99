"""report.html: one page, with all that it shows inside it, that tells how a run went."""

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np
from etils import epath
from markupsafe import Markup

from clip_jax.losses.objective import LOSSES
from clip_jax.runs.report import figures
from clip_jax.runs.report.charts import charts, cosine
from clip_jax.runs.results import (
    ClassResult,
    Evaluation,
    load_evaluation,
    load_snapshots,
    read_metrics,
)
from clip_jax.storage import atomic_write

FILE = "report.html"
MANY_CLASSES = 60  # from here on only the best and the worst ones are listed
LISTED = 12
# Metrics that a part of the page shows.
SHOWN = re.compile(r"eval/([\w-]+/)?(samples|loss|(zero_shot|text_to_image|image_to_text)_\w+)")


def write_report(
    run_directory: str | os.PathLike,
    *,
    facts: Mapping[str, str] | None = None,
    goodput: Mapping[str, float] | None = None,
) -> epath.Path:
    """Write `report.html` from what the run directory holds: settings, metrics, snapshots, evaluation.

    A part without data is omitted. The same directory gives the same page.

    Args:
      run_directory: of the run.
      facts: more lines for the table of facts, such as {"Devices": "8 x TPU v5e"}.
      goodput: seconds of wall time by what they went into, such as {"stepping": 812.0}.

    Returns:
      The file.
    """
    directory = epath.Path(run_directory)
    settings = _read_json(directory / "config.json")
    metrics = read_metrics(directory)
    evaluated = load_evaluation(directory)
    step, evaluation = evaluated or (0, Evaluation(metrics={}))
    page = ENVIRONMENT.get_template("report.html.jinja").render(
        name=directory.name,
        lead=_lead(settings, metrics),
        step=step,
        headline=_headline(evaluation.metrics, metrics),
        matrices=_matrices(load_snapshots(directory)),
        charts=charts(metrics, _guessing(settings)),
        zero_shot=_zero_shot(evaluation),
        retrieval=_retrieval(evaluation.metrics),
        examples=evaluation.examples,
        groups=len({c.group for c in evaluation.classes}) > 1,
        pictures=evaluation.examples.pictures if evaluation.examples else {},
        close_up=_close_up(evaluation),
        facts=_facts(settings, metrics) | _others(evaluation.metrics) | dict(facts or {}),
        goodput=_shares(goodput or {}),
    )
    atomic_write(directory / FILE, page)
    return directory / FILE


def _read_json(file: epath.Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _setting(settings: dict, name: str) -> Any:
    """The value at a dotted name, None where there is none."""
    value: Any = settings
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


# ------------------------------------------------------------------------------- what is said


def percent(share: float) -> str:
    """93.4 %, with a second digit where the first would not tell it from nothing or all."""
    digits = 2 if 0 < share < 0.01 or 0.999 < share < 1 else 1
    return f"{100 * share:.{digits}f} %"


def number(value: float) -> str:
    """Three digits that count, or all of a large number."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """4 h 12 min, 3 min 41 s, 12 s or 0.4 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"


def _lead(settings: dict, metrics: dict) -> str:
    """The sentence under the title."""
    model = _setting(settings, "model.name")
    batch = _setting(settings, "data.batch_size")
    steps = max(metrics, default=0)
    who = f"A {model} model" if model else "A CLIP model"
    pairs = f" on {steps * batch:,} image-caption pairs" if batch and steps else ""
    return f"{who}, trained for {steps:,} steps{pairs}." if steps else f"{who}, not trained yet."


def _guessing(settings: dict) -> float | None:
    """The loss of a model that gives all pairs of a batch the same similarity."""
    batch, loss = _setting(settings, "data.batch_size"), LOSSES.get(_setting(settings, "loss.kind"))
    known = batch and loss and loss.random_loss and not _setting(settings, "loss.terms")
    return loss.random_loss(batch) if known else None


def _facts(settings: dict, metrics: dict) -> dict[str, str]:
    source = _setting(settings, "data.source")
    named = {
        "Model": _setting(settings, "model.name"),
        "Computed in": _setting(settings, "model.dtype"),
        "Data": ", ".join(source) if isinstance(source, list) else source,
        "Batch": _pairs(_setting(settings, "data.batch_size")),
        "Steps": _steps(max(metrics, default=0), _setting(settings, "steps")),
        "Loss": _setting(settings, "loss.kind"),
        "Optimizer": _setting(settings, "optimizer.name"),
        "Peak learning rate": _setting(settings, "optimizer.learning_rate"),
        "Seed": _setting(settings, "seed"),
    }
    speeds = [m["images_per_second"] for m in metrics.values() if "images_per_second" in m]
    if speeds:
        named["Speed"] = f"{number(float(np.median(speeds)))} images a second"
    shares = [m["mfu"] for m in metrics.values() if "mfu" in m]
    if shares:
        named["Model FLOPs utilisation"] = percent(float(np.median(shares)))
    return {name: str(value) for name, value in named.items() if value is not None}


def _others(evaluated: dict[str, float]) -> dict[str, str]:
    """What the report has no part for, such as an evaluator's from outside the tree."""
    others = {name: value for name, value in evaluated.items() if not SHOWN.fullmatch(name)}
    return {words(name.removeprefix("eval/")): number(value) for name, value in others.items()}


def _pairs(count: int | None) -> str | None:
    return None if count is None else f"{count:,} pairs"


def _steps(done: int, planned: int | None) -> str:
    return f"{done:,}" if planned in (None, done) else f"{done:,} of {planned:,}"


def _headline(evaluated: dict[str, float], metrics: dict) -> list[tuple[str, str, str]]:
    """The large figures: a value, what it is, and what to hold against it."""
    cards = []

    def card(name: str, what: str, chance: str):
        if name in evaluated:
            held = f"guessing: {percent(evaluated[chance])}" if chance in evaluated else ""
            cards.append((percent(evaluated[name]), what, held))

    chance = "eval/zero_shot_chance"
    card("eval/zero_shot_top1", "zero-shot accuracy", chance)
    card("eval/zero_shot_held_out_top1", "held-out zero-shot accuracy", chance)
    for direction, what in DIRECTIONS.items():
        name = f"eval/{direction}_recall_at_1"
        card(name, what, f"{name}_chance")
    for other in sorted({name.split("/")[1] for name in evaluated if name.count("/") == 2}):
        chance = f"eval/{other}/zero_shot_chance"
        card(f"eval/{other}/zero_shot_top1", f"zero-shot accuracy on {other}", chance)
        for direction, what in DIRECTIONS.items():
            name = f"eval/{other}/{direction}_recall_at_1"
            card(name, f"{what}, of {other}", f"{name}_chance")
    losses = [m["loss"] for m in metrics.values() if "loss" in m]
    if losses:
        cards.append((number(losses[-1]), "training loss", f"at the start: {number(losses[0])}"))
    return cards


# ------------------------------------------------------------------------------ what is shown

DIRECTIONS = {
    "text_to_image": "captions that find their image first",
    "image_to_text": "images that find their caption first",
}


def _matrices(snapshots: dict[int, np.ndarray]) -> dict | None:
    """The first, the middle and the last matrix, on one scale of colours."""
    if not snapshots:
        return None
    first, last = min(snapshots), max(snapshots)
    middle = min(snapshots, key=lambda step: abs(step - (first + last) / 2))
    shown = {step: snapshots[step] for step in sorted({first, middle, last})}
    values = np.concatenate([matrix_NN.ravel() for matrix_NN in shown.values()])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    maps = []
    for step, matrix_NN in shown.items():
        apart = ~np.eye(len(matrix_NN), dtype=bool)
        others = float(matrix_NN[apart].mean()) if apart.any() else None
        maps.append(
            {
                "step": step,
                "image": figures.heat_map(matrix_NN, low, high),
                "pairs": len(matrix_NN),
                "matching": float(np.diagonal(matrix_NN).mean()),
                "others": others,
            }
        )
    scale = [figures.heat_color(value, low, high)[0] for value in np.linspace(low, high, 12)]
    return {"maps": maps, "low": low, "high": high, "scale": scale}


def _close_up(evaluation: Evaluation) -> dict | None:
    """The cosines of a few pairs as a table of coloured cells."""
    if evaluation.examples is None or len(evaluation.examples.close_up.images) < 2:
        return None
    close_up = evaluation.examples.close_up
    low, high = (bound(map(bound, close_up.cosines)) for bound in (min, max))
    rows = [
        (caption, [(value, *figures.heat_color(value, low, high)) for value in row])
        for caption, row in zip(close_up.captions, close_up.cosines)
    ]
    return {"images": close_up.images, "rows": rows}


def _zero_shot(evaluation: Evaluation) -> dict | None:
    """A row of figures for all images and for each group, and a bar for each class."""
    metrics, prefix = evaluation.metrics, "eval/zero_shot_"
    if f"{prefix}top1" not in metrics:
        return None
    groups = sorted({c.group for c in evaluation.classes if c.group is not None}, reverse=True)
    columns = {"top1": "Top-1", "top5": "Top-5", "mean_per_class": "Mean per class"}
    table = []
    for group, label in [("", "all"), *((f"{group}_", group) for group in groups)]:
        names = [f"{prefix}{group}{column}" for column in columns]
        if all(name in metrics for name in names):
            table.append((label, [metrics[name] for name in names]))
    return {
        "columns": list(columns.values()),
        "table": table,
        "chance": metrics.get(f"{prefix}chance"),
        "classes": _class_bars(evaluation.classes),
        "count": len(evaluation.classes),
    }


def _class_bars(classes: tuple[ClassResult, ...]) -> list[tuple[str, list[ClassResult]]]:
    """All classes under their group's name; of very many the best and the worst alone."""
    ordered = sorted(classes, key=lambda c: (-c.accuracy, c.name))
    if len(ordered) > MANY_CLASSES:
        return [
            (f"the {LISTED} best", ordered[:LISTED]),
            (f"the {LISTED} worst", ordered[-LISTED:]),
        ]
    groups = sorted({c.group or "" for c in classes}, reverse=True)
    return [(group, [c for c in ordered if (c.group or "") == group]) for group in groups]


def _retrieval(metrics: dict[str, float]) -> list[dict]:
    """For each direction the recall at each k, with what guessing would reach."""
    rows = []
    for direction, title in (
        ("text_to_image", "a caption finds its image"),
        ("image_to_text", "an image finds its caption"),
    ):
        name = f"eval/{direction}"
        recalls = [
            (k, metrics[f"{name}_recall_at_{k}"], metrics.get(f"{name}_recall_at_{k}_chance"))
            for k in (1, 5, 10)
            if f"{name}_recall_at_{k}" in metrics
        ]
        if recalls:
            rows.append(
                {"title": title, "recalls": recalls, "median": metrics.get(f"{name}_median_rank")}
            )
    return rows


def _shares(goodput: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """What time went into, its seconds and its share, the largest first."""
    total = sum(goodput.values())
    ordered = sorted(goodput.items(), key=lambda item: -item[1])
    return [(words(name), seconds, seconds / total) for name, seconds in ordered if seconds > 0]


def words(name: str) -> str:
    """waiting_for_data as a person writes it."""
    return name.replace("_", " ")


def hyphened(group: str) -> str:
    """held_out as a person writes it in front of a noun."""
    return group.replace("_", "-")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clip_jax.runs.report", "."),
        autoescape=True,  # captions come from anywhere
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, number, duration, words, hyphened, cosine)
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters["svg"] = Markup
    return environment


ENVIRONMENT = _environment()

"""bench.html: the table, a bar for each class and the hardest confusions, in one file."""

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from clip_jax.evaluation.bench import forms
from clip_jax.evaluation.bench.report import Report
from clip_jax.evaluation.bench.tasks import Task
from clip_jax.storage import atomic_write

TEMPLATE = "page.html.jinja"


def write(out: Path, report: Report):
    """Write the page. It needs no other file and no network."""
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "bench.html", render(report))


def render(report: Report) -> str:
    """The page as HTML; every name of a class, model or task is escaped."""
    text = (resources.files("clip_jax.evaluation.bench") / TEMPLATE).read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    head, *rows = forms.table(report)
    count = len(report.suite.tasks)
    return environment.from_string(text).render(
        suite=report.suite.name,
        models=report.models,
        head=head,
        tasks=[
            {"task": task, "row": row, "best": _best(report, task)}
            for task, row in zip(report.suite.tasks, rows)
        ],
        averages=rows[count:],
        details=[_details(report, task) for task in report.suite.tasks if _measured(report, task)],
        missing=report.missing,
        failed=report.failed,
    )


def _measured(report: Report, task: Task) -> list[dict[str, Any]]:
    found = (report.results.get((model, task.name)) for model in report.models)
    return [result for result in found if result is not None]


def _best(report: Report, task: Task) -> set[str]:
    """The models with the best value, where there are several to compare."""
    values = {
        model: report.results[model, task.name]["value"]
        for model in report.models
        if (model, task.name) in report.results
    }
    if len(values) < 2:
        return set()
    best = (max if task.better == "higher" else min)(values.values())
    return {model for model, value in values.items() if value == best}


def _details(report: Report, task: Task) -> dict[str, Any]:
    """All metrics, all classes and the confusions of every model, side by side."""
    results = _measured(report, task)
    metrics = list(dict.fromkeys(name for found in results for name in found["metrics"]))
    classes = [{each["name"]: each for each in found["classes"]} for found in results]
    names = list(dict.fromkeys(name for own in classes for name in own))
    rows = [(name, [own.get(name) for own in classes]) for name in names]
    rows.sort(key=lambda row: min(each["accuracy"] for each in row[1] if each is not None))
    return {"task": task, "results": results, "metrics": metrics, "classes": rows}

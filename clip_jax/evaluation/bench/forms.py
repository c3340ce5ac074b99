"""A report as a table for a terminal, as CSV, and as JSON in CLIP_benchmark's and DataComp's forms."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.evaluation.bench.report import Report
from clip_jax.evaluation.bench.tasks import KINDS, Suite
from clip_jax.evaluation.evaluators import EVALUATORS
from clip_jax.storage import atomic_write
from clip_jax.storage.names import file_name

UNUSUAL = r"[^\w.-]+"  # in the name of a file

# Our names and those of CLIP_benchmark (metrics/*.py) and of DataComp (eval_utils/*.py).
NAMES = {
    "zero_shot_top1": "acc1",
    "zero_shot_top5": "acc5",
    "zero_shot_mean_per_class": "mean_per_class_recall",
    "zero_shot_macro_f1": "F1-macro_all",
    "multilabel_map": "mean_average_precision",
    "recall_at_1": "mean_recall@1",
    "choice_text": "text_acc",
    "choice_image": "image_acc",
    "choice_group": "acc",
    "jaccard": "avg_jaccard_score",
    "jaccard_5_6": "jaccard_score_5-6",
    "jaccard_10_12": "jaccard_score_10-12",
}
for _k in (1, 5, 10):
    # "image retrieval" finds images for a caption.
    NAMES[f"text_to_image_recall_at_{_k}"] = f"image_retrieval_recall@{_k}"
    NAMES[f"image_to_text_recall_at_{_k}"] = f"text_retrieval_recall@{_k}"
WORST = {
    "wilds/fmow": {"zero_shot_worst_group_top1": "acc_worst_region"},
    "fairness/dollar_street": {"zero_shot_worst_group_top5": "acc_top5_wg"},
}
ANY_WORST = {"zero_shot_worst_group_top1": "acc_wg", "zero_shot_worst_group_top5": "acc_top5_wg"}


class Average(NamedTuple):
    value: float | None  # None: not one of its tasks was measured
    done: int
    tasks: int

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.4f}" + (
            "" if self.done == self.tasks else f" ({self.done}/{self.tasks})"
        )


def averages(report: Report, model: str) -> dict[str, Average]:
    """The mean main metric of every group of tasks, over those that were measured."""
    found = {}
    for title, names in report.suite.averages.items():
        values = [report.results[model, n]["value"] for n in names if (model, n) in report.results]
        mean = sum(values) / len(values) if values else None
        found[title] = Average(mean, len(values), len(names))
    return found


def table(report: Report) -> list[list[str]]:
    """Rows of text: the tasks, the metric, a column a model; then the averages; then the probes."""
    rows = [["task", "metric", *report.models]]
    for task in report.suite.tasks:
        cells = []
        for model in report.models:
            found = report.results.get((model, task.name))
            failed = "failed" if (model, task.name) in report.failed else "-"
            cells.append(failed if found is None else f"{found['value']:.4f}")
        rows.append([task.title, task.main, *cells])
    by_model = [averages(report, model) for model in report.models]
    for title in report.suite.averages:
        rows.append([title, "mean", *(str(found[title]) for found in by_model)])
    probes = [str(each.headline) for each in EVALUATORS.values() if "train" in each.needs]
    for task in report.suite.tasks:
        own = [report.results.get((model, task.name)) for model in report.models]
        for metric in probes:
            values = [found and found["metrics"].get(metric) for found in own]
            if any(value is not None for value in values):
                cells = ["-" if value is None else f"{value:.4f}" for value in values]
                rows.append([task.title, metric, *cells])
    return rows


def text(report: Report) -> str:
    """The table for a terminal, and below it what is missing and what failed, a line each."""
    rows = table(report)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    count = len(report.suite.tasks)
    lines.insert(count + 1, "")
    if report.missing:
        lines += ["", f"No data for {len(report.missing)} of {count} tasks. They come from:"]
        lines += [f"  {name}: {where}" for name, where in report.missing.items()]
    if report.failed:
        lines += ["", f"{len(report.failed)} failed:"]
        lines += [f"  {model} {name}: {line}" for (model, name), line in report.failed.items()]
    return "\n".join(lines)


def write(out: Path, report: Report):
    """results.csv, results.json, averages, clip_benchmark/*.json and MODEL/eval_results.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "results.csv", _csv(report))
    everything = {
        "suite": report.suite.name,
        "models": report.models,
        "averages": {
            model: {title: found._asdict() for title, found in averages(report, model).items()}
            for model in report.models
        },
        "results": [
            {k: v for k, v in found.items() if k not in ("pictures", "confusions")}
            for found in report.results.values()
        ],
        "missing": report.missing,
        "failed": [
            {"model": model, "task": name, "error": line}
            for (model, name), line in report.failed.items()
        ],
    }
    atomic_write(out / "results.json", json.dumps(everything, indent=1) + "\n")
    for model, plain in file_names(report.models).items():
        own = [found for (name, _), found in report.results.items() if name == model]
        if own:
            _datacomp(out / "datacomp" / plain, own, report.suite)
        for found in own:
            _clip_benchmark(out / "clip_benchmark", model, plain, found)


def file_names(models: Sequence[str]) -> dict[str, str]:
    """A name that files may have for each model; "a/b" and "a_b" get two."""
    found: dict[str, str] = {}
    for model in models:
        plain = file_name(model, replaced=UNUSUAL).strip("_") or "model"
        while plain in found.values():
            plain += "_"
        found[model] = plain
    return found


def renamed(task: str, metrics: dict[str, float]) -> dict[str, float]:
    """Metrics under the names that CLIP_benchmark and DataComp have for them."""
    names = NAMES | ANY_WORST | WORST.get(task, {})
    return {names[name]: value for name, value in metrics.items() if name in names}


def _clip_benchmark(folder: Path, model: str, plain: str, found: dict[str, Any]):
    entry = {
        "dataset": f"wds/{found['task']}",
        "model": model,
        "pretrained": model,
        "task": KINDS[found["kind"]].form,
        "metrics": renamed(found["task"], found["metrics"]),
        "language": "en",
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = file_name(f"{found['task']}_{plain}_en_{entry['task']}", replaced=UNUSUAL)
    atomic_write(folder / f"{file}.json", json.dumps(entry))


def _datacomp(folder: Path, results: Sequence[dict[str, Any]], suite: Suite):
    lines = []
    for found in results:
        metrics: dict[str, float | None] = dict(renamed(found["task"], found["metrics"]))
        entry = {
            "key": found["task"],
            "dataset": found["title"],
            "metrics": metrics | {"main_metric": found["value"]},
        }
        lines.append(json.dumps(entry))
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "eval_results.jsonl", "\n".join(lines) + "\n")


def _csv(report: Report) -> str:
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(["model", "dataset", "title", "task", "metric", "value", "main", "samples"])
    for (model, name), found in report.results.items():
        for metric, value in found["metrics"].items():
            is_main = int(metric == found["main"])
            form = KINDS[found["kind"]].form
            rows.writerow([model, name, found["title"], form, metric, repr(value), is_main, found["samples"]])  # fmt: skip
    return buffer.getvalue()

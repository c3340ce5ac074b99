"""Which checkpoints stay: the last ones, every Kth for ever, and the best by a metric."""

import difflib
import json
import logging
import math
import re
from collections.abc import Iterable

from etils import epath

from clip_jax.config import CheckpointConfig
from clip_jax.evaluation.evaluators.retrieval import KS
from clip_jax.storage import atomic_write

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations.json"  # beside the steps: the metrics of each, by its number
DIRECTIONS = ("text_to_image", "image_to_text")
METRICS = (
    "loss",
    *(f"zero_shot_{figure}" for figure in ("top1", "top5", "mean_per_class")),
    *(f"{way}_recall_at_{k}" for way in DIRECTIONS for k in KS),
    *(f"{way}_{kind}_rank" for way in DIRECTIONS for kind in ("mean", "median")),
)


class Keep:
    """Orbax asks it whenever a save begins, and deletes the others once that one is committed."""

    def __init__(self, directory: epath.Path, cfg: CheckpointConfig):
        self._directory, self._cfg = directory, cfg

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        cfg, steps = self._cfg, sorted(info.step for info in checkpoints)
        kept = set(steps[-cfg.keep_last :])
        if cfg.keep_every_steps:
            kept.update(step for step in steps if step % cfg.keep_every_steps == 0)
        if cfg.keep_best_by:
            kept.add(best_step(self._directory, steps, cfg.keep_best_by))
        return [info.step in kept for info in checkpoints]


def best_step(directory: epath.Path, steps: list[int], name: str) -> int | None:
    """The step with the best value of a metric; of equals the first."""
    values = _values(directory, steps, name)
    return max(values, key=lambda step: (values[step], -step), default=None)


def goodness(name: str, metrics: dict[str, float]) -> float:
    """More is better, of everything but a loss and a rank. What is not a number is the worst."""
    last = name.rsplit("/", 1)[-1]
    value = -metrics[name] if last.endswith(("loss", "_rank")) else metrics[name]
    return -math.inf if math.isnan(value) else value


def check_name(name: str, others: Iterable[str] = ()):
    """Refuse a metric that no evaluation can have, before the hours of training.

    Args:
      name: `checkpoint.keep_best_by`.
      others: names of further data sets that are measured.
    """
    prefix, _, metric = name.rpartition("/")
    # Groups of a data set, such as held_out, stand between zero_shot and the figure.
    figure = re.sub(r"^zero_shot_.+_(top1|top5|mean_per_class)$", r"zero_shot_\1", metric)
    prefixes = ["eval", *(f"eval/{other}" for other in others)]
    if prefix in prefixes and figure in METRICS:
        return
    known = [f"{start}/{known}" for start in prefixes for known in METRICS]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
    raise ValueError(
        f"checkpoint.keep_best_by={name} is no metric of an evaluation; the nearest are "
        f"{', '.join(near or known[:3])}"
    )


def read_metadata(step_directory: epath.Path) -> dict:
    """What was saved beside the arrays of a step, or {} where it cannot be read."""
    try:
        return json.loads((step_directory / "metadata" / "metadata").read_text())
    except (OSError, ValueError):
        return {}


def record(directory: epath.Path, step: int, metrics: dict[str, float]):
    """Keep what an evaluation of a step found, which was saved before. One process calls this.

    What is not finite has no place in JSON, and counts as not measured.
    """
    found = {name: value for name, value in metrics.items() if math.isfinite(value)}
    try:
        known = {path.name for path in directory.iterdir()}
        kept = {k: v for k, v in _recorded(directory).items() if k in known}
        atomic_write(directory / EVALUATIONS, json.dumps(kept | {str(step): found}))
    except OSError as error:
        log.warning("%s could not be written: %s", directory / EVALUATIONS, error)


def metrics_of(directory: epath.Path, step: int) -> dict[str, float]:
    """What an evaluation of a step found; {} where there was none."""
    saved_with_it = read_metadata(directory / str(step)).get("metrics", {})  # by older versions
    return saved_with_it | _recorded(directory).get(str(step), {})


def _recorded(directory: epath.Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads((directory / EVALUATIONS).read_text())
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {step: metrics for step, metrics in entries if isinstance(metrics, dict)}


def _values(directory: epath.Path, steps: list[int], name: str) -> dict[int, float]:
    found = {step: metrics_of(directory, step) for step in steps}
    return {step: goodness(name, found[step]) for step in steps if name in found[step]}

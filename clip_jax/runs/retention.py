"""Which checkpoints stay: the last ones, every Kth for ever, and the best by a metric."""

import json
import logging
import math
from collections.abc import Callable
from typing import Literal

from etils import epath

from clip_jax.config import CheckpointConfig
from clip_jax.storage import atomic_write

log = logging.getLogger(__name__)

EVALUATIONS = "evaluations.json"  # beside the steps: the metrics of each, by its number
Better = Literal["higher", "lower"]  # values of a metric


class Keep:
    """Orbax asks it whenever a save begins, and deletes the others once that one is committed.

    `agree` gives every process what process 0 has decided, which alone writes what was evaluated: the
    others may see it late on a network's file system.
    """

    def __init__(
        self,
        directory: epath.Path,
        cfg: CheckpointConfig,
        *,
        better: Better,
        agree: Callable[[list[bool]], list[bool]] = list,
    ):
        self._directory, self._cfg, self._better = directory, cfg, better
        self._agree = agree

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        cfg, steps = self._cfg, sorted(info.step for info in checkpoints)
        kept = set(steps[-cfg.keep_last :])
        if cfg.keep_every_steps:
            kept.update(step for step in steps if step % cfg.keep_every_steps == 0)
        if cfg.keep_best_by:
            kept.add(best_step(self._directory, steps, cfg.keep_best_by, better=self._better))
        return self._agree([info.step in kept for info in checkpoints])


def best_step(directory: epath.Path, steps: list[int], name: str, *, better: Better) -> int | None:
    """The step with the best value of a metric; of equals the first."""
    values = _values(directory, steps, name, better)
    return max(values, key=lambda step: (values[step], -step), default=None)


def goodness(value: float | None, better: Better) -> float:
    """More is better, whichever way the metric is. What is no number is the worst."""
    if value is None or math.isnan(value):
        return -math.inf
    return -value if better == "lower" else value


def read_metadata(step_directory: epath.Path) -> dict:
    """What was saved beside the arrays of a step, or {} where it cannot be read."""
    try:
        found = json.loads((step_directory / "metadata" / "metadata").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def is_recorded(directory: epath.Path, step: int) -> bool:
    """Whether an evaluation of a step found anything, be it a number or not."""
    return str(step) in _recorded(directory) or bool(metrics_of(directory, step))


def _recorded(directory: epath.Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads((directory / EVALUATIONS).read_text())
    except (OSError, ValueError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {step: _numbers(metrics) for step, metrics in entries if isinstance(metrics, dict)}


def _numbers(metrics: dict) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _values(directory: epath.Path, steps: list[int], name: str, better: Better) -> dict[int, float]:
    values = {step: goodness(metrics_of(directory, step).get(name), better) for step in steps}
    return {step: value for step, value in values.items() if value > -math.inf}

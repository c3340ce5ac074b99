"""Which checkpoints stay: the last ones, every Kth for ever, and the best by a metric."""

import json
import math
from typing import Literal

from etils import epath

from clip_jax.config import CheckpointConfig

Better = Literal["higher", "lower"]  # values of a metric


class Keep:
    """Orbax asks it whenever a save begins, and deletes the others once that one is committed."""

    def __init__(self, directory: epath.Path, cfg: CheckpointConfig, *, better: Better):
        self._directory, self._cfg, self._better = directory, cfg, better

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        cfg, steps = self._cfg, sorted(info.step for info in checkpoints)
        kept = set(steps[-cfg.keep_last :])
        if cfg.keep_every_steps:
            kept.update(step for step in steps if step % cfg.keep_every_steps == 0)
        if cfg.keep_best_by:
            kept.add(best_step(self._directory, steps, cfg.keep_best_by, better=self._better))
        return [info.step in kept for info in checkpoints]


def best_step(directory: epath.Path, steps: list[int], name: str, *, better: Better) -> int | None:
    """The step with the best value of a metric; of equals the first."""
    values = _values(directory, steps, name, better)
    return max(values, key=lambda step: (values[step], -step), default=None)


def best(directory: epath.Path, steps: list[int], name: str | None, *, better: Better) -> float:
    """The best value of a metric, as `goodness` counts it, or the worst where there is none."""
    values = _values(directory, steps, name, better) if name is not None else {}
    return max(values.values(), default=-math.inf)


def goodness(value: float | None, better: Better) -> float:
    """More is better, whichever way the metric is. What is no number is the worst."""
    if value is None or math.isnan(value):
        return -math.inf
    return -value if better == "lower" else value


def read_metadata(step_directory: epath.Path) -> dict:
    """What was saved beside the arrays of a step, or {} where it cannot be read."""
    try:
        return json.loads((step_directory / "metadata" / "metadata").read_text())
    except (OSError, ValueError):
        return {}


def _values(directory: epath.Path, steps: list[int], name: str, better: Better) -> dict[int, float]:
    saved = {step: read_metadata(directory / str(step)).get("metrics", {}) for step in steps}
    values = {step: goodness(saved[step].get(name), better) for step in steps}
    return {step: value for step, value in values.items() if value > -math.inf}

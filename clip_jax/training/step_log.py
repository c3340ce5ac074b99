"""The numbers of each step: fetched while the next one runs, checked, logged, given to hooks."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from clip_jax.config import HealthConfig
from clip_jax.registry import resolve
from clip_jax.runs.progress import Progress
from clip_jax.training.state import TrainState

log = logging.getLogger(__name__)

# Called after each step with its number, the state after it and its metrics, which are still on the
# devices; scalars that it returns are logged with the step.
Hook = Callable[[int, TrainState, dict[str, jax.Array]], dict[str, Any] | None]


class RunFailed(RuntimeError):
    """A run ended before its end, or without a part of its result. One line says why."""


class TooManySkipped(RunFailed):
    """Step after step had a loss, a gradient or an update that could not be used."""


class StepLog:
    """Logs steps one step late, so that the devices always have work.

    Args:
      progress: writes what is due.
      schedule: the learning rate of a step.
      cfg: how many steps in a row may be skipped.
      hooks: see `Hook`. One that fails is not called again, with a warning.
    """

    def __init__(
        self,
        progress: Progress,
        schedule: optax.Schedule,
        cfg: HealthConfig,
        *,
        hooks: Sequence[Hook] = (),
    ):
        self._progress, self._schedule, self._cfg = progress, schedule, cfg
        self._hooks = list(hooks)
        self._pending: list[tuple[int, dict]] = []  # at most one, whose numbers are on the devices

    def __call__(self, step: int, state: TrainState, metrics: dict[str, jax.Array]):
        """Take a step that the devices have begun, and log the one before."""
        self.flush()
        self._pending.append((step, metrics | self._of_hooks(step, state, metrics)))

    def flush(self):
        """Wait for the numbers of the pending step, log them, and see whether the run is sound.

        Raises:
          TooManySkipped: `health.max_skipped_in_row` were skipped.
        """
        while self._pending:
            step, on_device = self._pending.pop()
            self._log(step, {k: float(v) for k, v in jax.device_get(on_device).items()})

    def _log(self, step: int, metrics: dict[str, float]):
        in_row = metrics.pop("skipped_in_row")
        if self._progress.is_due(step):
            metrics["learning_rate"] = float(self._schedule(step - 1))
        self._progress.step(step, metrics)
        figures = (
            f"loss {metrics['loss']:g}, gradient norm {metrics['grad_norm']:g}, update norm "
            f"{metrics['update_norm']:g}"
        )
        if in_row >= self._cfg.max_skipped_in_row:
            raise TooManySkipped(
                f"{in_row:.0f} steps in a row, the last being step {step}, had a loss, gradient or "
                f"update that is not finite or far too large ({figures}); "
                "health.max_skipped_in_row allows no more. The parameters are those before the "
                "first of them. Lower optimizer.learning_rate, raise optimizer.eps, set "
                "optimizer.clip_norm, or look at the data."
            )
        if in_row:
            self._progress.print(f"Skipped step {step}: {figures}")

    def _of_hooks(self, step: int, state: TrainState, metrics: dict) -> dict:
        found = {}
        for hook in tuple(self._hooks):
            try:
                own = hook(step, state, metrics) or {}
                found |= {name: _scalar(name, value) for name, value in own.items()}
            except Exception:
                name = f"{hook.__module__}:{getattr(hook, '__qualname__', hook)}"
                log.exception("The hook %s failed at step %d and is not called again", name, step)
                self._hooks.remove(hook)
        return found


def _scalar(name: str, value: Any) -> Any:
    """A hook's figure as it is, which may still be on a device; it is looked at a step later."""
    number = np.isscalar(value) or getattr(value, "shape", None) == ()
    if not number or isinstance(value, str | bytes | complex):
        raise TypeError(f"{name} is a {type(value).__name__} that is no single number")
    return value


def make_hooks(names: Sequence[str]) -> list[Hook]:
    """The functions that `logging.hooks` names, each as package.module:NAME.

    Raises:
      ValueError: there is none of that name, or it cannot be called.
    """
    hooks = [resolve("logging.hooks", name, {}) for name in names]
    for name, hook in zip(names, hooks, strict=True):
        if not callable(hook):
            raise ValueError(f"logging.hooks={name} is a {type(hook).__name__}, not a function")
    return hooks

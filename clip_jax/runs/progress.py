"""The figures of a run's steps: speed, utilisation, memory; to the console and to the loggers."""

import time
from typing import Any

import jax

from clip_jax.config import LoggingConfig
from clip_jax.hardware import chip_of
from clip_jax.runs.console import Console
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.loggers import make_loggers


class Progress:
    """Logs steps. A context manager. Only the main process writes or shows anything.

    Args:
      run: the run directory.
      cfg: how often, and where.
      start: steps done before.
      steps: steps in all.
      batch_size: pairs of a step, over all devices.
      samples: pairs of the steps done before; None: of batches of the same size.
      flops: of the model for one pair of a train step (`models.flops.training_flops`).
      settings: of the run, flat, for the loggers.
    """

    def __init__(
        self,
        run: RunDirectory,
        cfg: LoggingConfig,
        *,
        start: int,
        steps: int,
        batch_size: int,
        flops: float,
        samples: int | None = None,
        settings: dict[str, Any] | None = None,
    ):
        self._cfg, self._batch_size, self._flops = cfg, batch_size, flops
        self._skipped = 0 if samples is None else samples - start * batch_size
        main = jax.process_index() == 0
        self._loggers = make_loggers(
            cfg.loggers if main else (), run, start=start, settings=settings or {}
        )
        self._console = Console(steps, start=start, shown=main, progress=cfg.progress)
        self._steps = steps
        self._since, self._since_step, self._waited = time.monotonic(), start, 0.0
        self._shown = start

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc):
        self._console.__exit__(*exc)
        self._loggers.close()

    def waited(self, seconds: float):
        """The step before this call stood still so long for its data."""
        self._waited += seconds

    def restart_clock(self):
        """What came before, such as an evaluation, is not the training's speed."""
        self._restart()
        self._console.restart_clock()

    def _restart(self):
        self._since, self._waited = time.monotonic(), 0.0
        self._since_step = self._shown

    def is_due(self, step: int) -> bool:
        """Whether the metrics of this step are to be logged."""
        return step % self._cfg.every_steps == 0 or step == self._steps

    def step(self, step: int, metrics: dict[str, float]):
        """A step is done. Its metrics are logged if it is one to be."""
        self._console.update(step)
        self._shown = step
        if not self.is_due(step):
            return
        elapsed = max(1e-9, time.monotonic() - self._since)
        speed = (step - self._since_step) * self._batch_size / elapsed
        values = metrics | {
            "samples_seen": step * self._batch_size + self._skipped,
            "images_per_second": speed,
            **utilisation(speed, self._flops),
            "data_wait_share": min(1.0, self._waited / elapsed),
            **memory(),
        }
        self._restart()
        shown = {"loss": f"{metrics['loss']:.3f}", "": f"{speed:.0f} images/s"}
        if "mfu" in values:
            shown["MFU"] = f"{100 * values['mfu']:.1f} %"
        self._console.show(shown, seconds_a_step=self._batch_size / max(speed, 1e-9))
        self.write(step, values)

    def write(self, step: int, values: dict[str, float]):
        """Give the figures of a step to all loggers."""
        self._loggers.log(step, values)

    def flush(self):
        """Before a checkpoint: what was logged survives a kill."""
        self._loggers.flush()

    def report(self, path: str):
        """The report was written."""
        self._loggers.report(path)
        self.print(f"Report: {path}")

    def print(self, text: str):
        """A line for the person who watches."""
        self._console.print(text)


def utilisation(images_per_second: float, flops: float) -> dict[str, float]:
    """What each chip does, and the share that this is of what it could do at most (MFU).

    The peak is of bfloat16 products, whatever the model computes in; a CPU has none that is known.
    """
    chip = chip_of(jax.devices()[0].device_kind)
    chips = jax.device_count() / (chip.devices if chip else 1)
    flops_a_chip = images_per_second * flops / chips
    each = {
        "images_per_second_per_chip": images_per_second / chips,
        "tflops_per_second_per_chip": flops_a_chip / 1e12,
    }
    if chip is not None:
        each["mfu"] = flops_a_chip / chip.peak_flops
    return each


def memory() -> dict[str, float]:
    """The most that one of this process's devices has held, where the backend tells."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"peak_memory_gib": max(peaks) / 2**30} if peaks else {}

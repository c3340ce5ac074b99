"""What a person sees of a run: a live line, metrics.jsonl and TensorBoard events."""

import os
import time

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from clip_jax.config import LoggingConfig
from clip_jax.hardware import chip_of
from clip_jax.runs.directory import RunDirectory


class Progress:
    """Logs steps. A context manager. Only the main process writes or shows anything.

    Args:
      run: where metrics.jsonl and the events are written.
      cfg: how often, and what.
      start: steps done before.
      steps: steps in all.
      batch_size: pairs of a step, over all devices.
      flops: of the model for one pair of a train step (`models.sizes.training_flops`).
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
    ):
        self._run, self._cfg, self._batch_size, self._flops = run, cfg, batch_size, flops
        self._main = jax.process_index() == 0
        # A log file gets a line now and then, a terminal a line that moves.
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            disable=not (cfg.progress and self._main),
            mininterval=0.2 if os.isatty(2) else 10.0,
            dynamic_ncols=True,
        )
        self._events = None
        if cfg.tensorboard and self._main:
            self._events = SummaryWriter(os.fspath(run.path), flush_secs=30)
        self._since, self._since_step, self._waited = time.monotonic(), start, 0.0
        self._shown = start

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc):
        self._bar.close()
        if self._events is not None:
            self._events.close()

    def waited(self, seconds: float):
        """The step before this call stood still so long for its data."""
        self._waited += seconds

    def restart_clock(self):
        """What came before, such as an evaluation, is not the training's speed."""
        self._since, self._waited = time.monotonic(), 0.0
        self._since_step = self._shown

    def is_due(self, step: int) -> bool:
        """Whether the metrics of this step are to be logged."""
        return step % self._cfg.every_steps == 0 or step == self._bar.total

    def step(self, step: int, metrics: dict[str, float]):
        """A step is done. Its metrics are logged if it is one to be."""
        self._bar.update(step - self._shown)
        self._shown = step
        if not self.is_due(step):
            return
        elapsed = max(1e-9, time.monotonic() - self._since)
        speed = (step - self._since_step) * self._batch_size / elapsed
        values = metrics | {
            "samples_seen": step * self._batch_size,
            "images_per_second": speed,
            **utilisation(speed, self._flops),
            "data_wait_share": min(1.0, self._waited / elapsed),
            **memory(),
        }
        self.restart_clock()
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {speed:.0f} images/s")
        self.write(step, values)

    def write(self, step: int, values: dict[str, float]):
        """One line of metrics.jsonl, and the same for TensorBoard."""
        rounded = {name: float(f"{value:.7g}") for name, value in values.items()}
        self._run.append_metrics({"step": step, **rounded})
        if self._events is not None:
            for name, value in values.items():
                place = name if "/" in name else f"train/{name}"
                self._events.add_scalar(place, value, step)

    def say(self, text: str):
        """A line above the live one."""
        if self._main:
            self._bar.write(text)


def utilisation(images_per_second: float, flops: float) -> dict[str, float]:
    """What each chip does, and the share that this is of what it could do at most (MFU).

    The peak is of bfloat16 products, whatever the model computes in; a CPU has none that is known.
    """
    chip = chip_of(jax.devices()[0].device_kind)
    chips = jax.device_count() / (chip.devices if chip else 1)
    each = {
        "images_per_second_per_chip": images_per_second / chips,
        "tflops_per_second_per_chip": images_per_second * flops / chips / 1e12,
    }
    if chip is not None:
        each["mfu"] = each["tflops_per_second_per_chip"] / chip.tflops
    return each


def memory() -> dict[str, float]:
    """The most that one of this process's devices has held, where the backend tells."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found]
    return {"peak_memory_gib": max(peaks) / 2**30} if peaks else {}

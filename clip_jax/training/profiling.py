"""A profiler's trace of some steps of a run, for TensorBoard or Perfetto."""

import importlib.util
import os

import jax


class Profile:
    """Traces steps `first` to `last`. A context manager, which ends a trace that is cut short.

    Args:
      steps: the first and the last step of the trace; None: nothing is traced.
      directory: the trace is written to its folder "plugins", where TensorBoard looks for it.

    Raises:
      ValueError: the steps do not rise from 1; a trace would end the process.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: str | os.PathLike):
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError(
                f"logging.profile_steps={steps} must be the first and the last step, such as 10 12"
            )
        if steps is not None and _tracing_crashes():
            raise ValueError(
                "logging.profile_steps: libtpu is installed and there is no TPU, where JAX's profiler ends "
                f"the process. Set JAX_PLATFORMS={jax.default_backend()} in the environment"
            )
        self._first, self._last = steps or (0, 0)
        self._directory = os.fspath(directory)
        self._is_on = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exc):
        self._stop()

    def before(self, step: int):
        """Call it before each step. A run that resumes in the middle of these steps traces the others."""
        if self._first <= step <= self._last and not self._is_on:
            jax.profiler.start_trace(self._directory)
            self._is_on = True

    def after(self, step: int, result: object):
        """Call it with the step's results, which the devices may still compute."""
        if self._is_on and step >= self._last:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self):
        if self._is_on:
            jax.profiler.stop_trace()
            self._is_on = False


def _tracing_crashes() -> bool:
    """Whether libtpu was loaded without a TPU: `start_trace` then ends by a segmentation fault (jax 0.10.2)."""
    tried = not jax.config.jax_platforms or "tpu" in jax.config.jax_platforms.split(",")
    return tried and jax.default_backend() != "tpu" and bool(importlib.util.find_spec("libtpu"))

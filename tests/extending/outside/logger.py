"""A logger and a hook that the tree does not have: `--logging.loggers outside.logger:Csv`."""

import csv

import jax
import jax.numpy as jnp

from clip_jax.runs.loggers import Logger


class Csv(Logger):
    """RUN/metrics.csv, a row for each figure."""

    def __init__(self, run, *, start, settings):
        super().__init__(run, start=start, settings=settings)
        self._path = run.path / "metrics.csv"

    def log(self, step, values):
        with open(self._path, "a", newline="") as file:
            csv.writer(file).writerows((step, name, value) for name, value in values.items())


def mean_size(step, state, metrics):
    """How large the image tower's parameters are, logged with each step."""
    del step, metrics
    leaves = jax.tree.leaves(state.params["image"])
    return {"mean_size": sum(jnp.abs(x).sum() for x in leaves) / sum(x.size for x in leaves)}

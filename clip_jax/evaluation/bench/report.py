"""What a bench found."""

import dataclasses
from typing import Any

from clip_jax.evaluation.bench.tasks import Suite


@dataclasses.dataclass
class Report:
    """Results of models on a suite. The same in every process."""

    suite: Suite
    models: tuple[str, ...]
    results: dict[tuple[str, str], dict[str, Any]]  # by model and task, see `measure`
    failed: dict[tuple[str, str], str]  # a line each, which names the file
    missing: dict[str, str]  # where the data of a task come from

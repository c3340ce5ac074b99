"""What every process knows, in all of them."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def allgather_json(own: Any) -> list[Any]:
    """What each process gives, as JSON, in the order of their indices. All must call it together."""
    if jax.process_count() == 1:
        return [own]
    content_C = np.frombuffer(json.dumps(own).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(content_C.size)).tolist()
    # A power of two, as each length is a program of its own that has to be compiled.
    padded_C = np.zeros(2 ** max(sizes).bit_length(), np.uint8)
    padded_C[: content_C.size] = content_C
    contents_PC = multihost_utils.process_allgather(padded_C)
    return [json.loads(bytes(row_C[:size])) for row_C, size in zip(contents_PC, sizes)]


class OtherProcessFailed(ValueError):
    """What failed in another process alone, and so is given up in all."""


def raise_together(failure: Exception | None):
    """Raise in all processes what has failed in some. All must call it together.

    Raises:
      Exception: this process's own failure.
      OtherProcessFailed: this process has none.
    """
    text = None if failure is None else f"{type(failure).__name__}: {failure}"[:2000]
    failures = {i: said for i, said in enumerate(allgather_json(text)) if said is not None}
    if failure is not None:
        raise failure
    for index, said in failures.items():
        raise OtherProcessFailed(f"process {index} failed: {said}")

"""Counts of bad samples in a checkpoint: every process's, and each process restores its own."""

from pathlib import Path

import jax

from clip_jax.data.bad_samples import BadSamples


def own_counts(gathered: list[dict | None]) -> dict | None:
    """The counts that this process resumes from.

    With as many processes as when they were saved, they are those of the process with the same index,
    which read the same rows of the batches. Else process 0 takes the sum and the others start at 0.
    """
    if len(gathered) == jax.process_count():
        return gathered[jax.process_index()]
    if jax.process_index() > 0:
        return None
    total = BadSamples()
    for counts in filter(None, gathered):
        total.merge(BadSamples.from_json(counts))
    return total.to_json()


def open_bad_samples(counts: dict | None, folder: Path | None) -> BadSamples:
    """This process's counts, from a checkpoint or new; each sample is a line of a file in `folder`."""
    file = None if folder is None else Path(folder) / f"bad_samples.{jax.process_index()}.jsonl"
    return BadSamples.from_json(counts, file) if counts else BadSamples.start(file)

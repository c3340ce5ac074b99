"""The accounts of bad samples, one a process: all of them in a checkpoint, each back where it was."""

from pathlib import Path

import jax

from clip_jax.data.bad_samples import BadSamples


def take_account(accounts: list[dict | None]) -> dict | None:
    """This process's account out of those that were gathered.

    Where there are as many processes as then, it is the one's with the same index, which read the
    same rows of the batches; else process 0 goes on with the sum, and the others start anew.
    """
    if len(accounts) == jax.process_count():
        return accounts[jax.process_index()]
    if jax.process_index() > 0:
        return None
    total = BadSamples()
    for account in filter(None, accounts):
        total.merge(BadSamples.from_json(account))
    return total.to_json()


def open_account(account: dict | None, folder: Path | None) -> BadSamples:
    """This process's account, from a checkpoint or new; each sample is a line of a file in `folder`."""
    file = None if folder is None else Path(folder) / f"bad_samples.{jax.process_index()}.jsonl"
    return BadSamples.from_json(account, file) if account else BadSamples.anew(file)

"""What a run is made of, as its directory keeps it: written once, compared at every later start."""

import functools
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import xxhash
from etils import epath

from clip_jax import config_io
from clip_jax.config import TrainConfig
from clip_jax.data import orders
from clip_jax.data.sources import registry
from clip_jax.data.tokenizers.base import DESCRIPTION, Tokenizer
from clip_jax.runs import provenance, retention
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.trained_variables import list_steps
from clip_jax.training.optimizer import make_schedule
from clip_jax.training.setup import Setup

log = logging.getLogger(__name__)

JUMP = 1.5  # a learning rate that changes by more from one step to the next is named


def check_resume(setup: Setup, run: RunDirectory):
    """Compare settings and libraries with those of the run that is there, and name what changed.

    Raises:
      ValueError: a setting changes the training and is not allowed to, or the run is past the end.
    """
    done = max(list_steps(run.checkpoints), default=0)
    # Each checkpoint knows the settings and the data too: files that a person removed are no licence.
    saved = retention.read_metadata(run.checkpoints / str(done))
    old, new = run.load_config() or run.config_of(saved), setup.cfg
    if old is None:
        return
    if new.steps < done:
        raise ValueError(
            f"steps={new.steps} is fewer than the {done} steps that {run.path} has done: set steps "
            f"to {done} or more, or choose another --workdir"
        )
    jump = rate_jump(old, new, done)
    was = {"shuffle_order": orders.GLOBAL, "fingerprint": None}
    record = data_record(setup)
    was |= run.read_json("data.json") or {k: v for k, v in saved.items() if k in record}
    was.setdefault("tokenizer_files", record["tokenizer_files"])  # older runs do not say
    try:
        changes = config_io.check_resume(
            config_io.to_json(old) | was,
            config_io.to_json(new) | record,
            new.checkpoint.allow_change,
        )
    except ValueError as error:
        raise ValueError(f"{error}. {jump}" if jump else str(error)) from None
    refuse_other_tokenizer(changes, run)
    for change in changes:
        log.warning("Resuming with another setting: %s", change)
    if jump:
        log.warning("%s", jump)
    saved = run.read_json("environment.json") or saved
    kept = {name: saved.get(name, {}) for name in ("versions", "random")}
    for change in config_io.differences(kept, provenance.environment()):
        if change.old is not None:
            log.warning("Resuming with another version or generator: %s", change)


def refuse_other_tokenizer(changes: list[config_io.Change], run: RunDirectory):
    """A run keeps the tokenizer that it began with, whatever may change."""
    names = [change.name for change in changes if change.name.startswith("tokenizer.")]
    if names and (run.tokenizer / DESCRIPTION).exists():
        raise ValueError(
            f"another {', '.join(names)} has no effect: the run keeps the tokenizer in {run.tokenizer}. "
            "Give the old values, or choose another --workdir"
        )


def rate_jump(old: TrainConfig, new: TrainConfig, done: int) -> str:
    """How the learning rate jumps where other settings take over after `done` steps; "" if not."""
    if not done or (old.optimizer, old.steps) == (new.optimizer, new.steps):
        return ""
    before = float(make_schedule(old.optimizer, old.steps)(done - 1))
    after = float(make_schedule(new.optimizer, new.steps)(done))
    if max(before, after) <= JUMP * min(before, after):
        return ""
    options = "optimizer.schedule", "optimizer.learning_rate", "optimizer.warmup_steps"
    return (
        f"The learning rate goes from {before:.3g} at step {done} to {after:.3g} at step {done + 1}; "
        f"to continue at the former: --optimizer.schedule constant --optimizer.learning-rate "
        f"{before:.3g} --optimizer.warmup-steps 0 --checkpoint.allow-change steps {' '.join(options)}"
    )


def write(setup: Setup, run: RunDirectory):
    """Write what the run is made of, once its start is known to be allowed."""
    run.save_config(setup.cfg, setup.model.config)
    run.write_json("data.json", data_record(setup))
    run.write_json("environment.json", provenance.environment())
    if jax.process_index() == 0 and not (run.tokenizer / DESCRIPTION).exists():
        setup.tokenizer.save(run.tokenizer)


def note_saved(setup: Setup, run: RunDirectory, step: int):
    """A checkpoint of this step is on disk, and beside it what whoever loads it needs to know."""
    try:
        if run.reopen_if_removed():
            write(setup, run)
    except (OSError, ValueError) as error:
        log.error("%s cannot be written again: %s", run.path, error)
    run.note_saved(step)


def facts(setup: Setup) -> dict[str, object]:
    """What each process has found or computed for itself and must have in common with the others."""
    record = data_record(setup)
    known = {"training data": record["fingerprint"], "order of training": record["shuffle_order"]}
    for source in setup.sources:
        known[f"samples of {source.name}"] = len(source)
    if setup.evaluators is not None:
        known |= setup.evaluators.facts()
    known["tokenizer"] = record["tokenizer_files"]
    if setup.initial is not None:
        leaves = jax.tree.leaves(setup.initial.variables)
        known["model.init_from"] = _digest(np.ascontiguousarray(leaf).data for leaf in leaves)
    return known


@functools.cache
def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Of the files that a run keeps of its tokenizer, but for how long its rows are: a setting says so."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(epath.Path(folder))
        files = sorted(path for path in Path(folder).iterdir() if path.name != DESCRIPTION)
        return _digest([tokenizer.kind.encode(), *(path.read_bytes() for path in files)])


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = xxhash.xxh3_64()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def fingerprint(setup: Setup) -> str:
    return registry.fingerprint(setup.sources, setup.cfg.data.weights)


def data_record(setup: Setup) -> dict[str, str]:
    """What is trained on and in which order, which may not change when a run resumes."""
    return {
        "fingerprint": fingerprint(setup),
        "shuffle_order": orders.describe(setup.sources, setup.cfg.data),
        "tokenizer_files": tokenizer_digest(setup.tokenizer),
    }

"""Checkpoints of a run: saved beside the training, checked before they are used, kept by rules."""

import itertools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from clip_jax.config import CheckpointConfig
from clip_jax.runs import manifest, old_layouts, retention, structure
from clip_jax.runs.orbax_setup import set_up_orbax
from clip_jax.runs.save_retries import SaveRetries

log = logging.getLogger(__name__)
# Orbax logs each failure three times with its stack; here it is one line, or an exception.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

SET_ASIDE = "damaged"  # the folder beside the steps that damaged ones are moved to
AGREE_SECONDS = 5.0  # how often several processes compare notes about saves by the clock


class Restored(NamedTuple):
    state: Any
    step: int
    metadata: dict


class Checkpoints:
    """The checkpoints in one folder or bucket. A context manager, which waits for the last save.

    All processes make the same calls in the same order. Files are written by a background thread;
    a manifest of checksums is part of each commit, and nothing is restored that differs from it.
    `on_saved` is called with each step that is committed.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        cfg: CheckpointConfig,
        *,
        better: retention.Better = "higher",  # which way checkpoint.keep_best_by is
        on_saved: Callable[[int], None] | None = None,
    ):
        set_up_orbax()
        self.directory = epath.Path(directory)
        self._is_remote = "://" in os.fspath(self.directory)
        self._cfg, self._better, self._on_saved = cfg, better, on_saved
        self._manager = _Manager(
            self.directory,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "metadata": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=retention.Keep(
                    self.directory, cfg, better=better, agree=_of_process_0
                ),
                cleanup_tmp_directories=True,
                # Reading every step's marks at the start would stop at the first damaged one.
                lightweight_initialize=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )
        self._last_save = time.monotonic()  # a wall clock may be set back
        self._in_flight: int | None = None  # the step that is being written
        self._error: Exception | None = None  # of this process, not yet agreed on
        self._stale = False  # whether orbax's list of steps may differ from the folder
        self._retries = SaveRetries(self.directory, cfg.retry_seconds)
        self._next_talk = 0  # the step at which the processes compare notes
        self._talked: tuple[int, float] | None = None  # the step and the time of the last talk

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
            return
        try:  # nothing is agreed on here: the other processes may be elsewhere
            self._manager.close()
        except Exception:
            log.exception("The last checkpoint could not be finished")

    def steps(self) -> list[int]:
        """The steps that there are, damaged ones included."""
        return sorted(self._manager.all_steps())

    # ------------------------------------------------------------------------------- saving

    def save(
        self,
        step: int,
        state: Any,
        *,
        metadata: dict | Callable[[], dict],
        due: bool = False,
        force: bool = False,
    ) -> bool:
        """Save if this step is one to save. Call it once after every step, on every process.

        Returns at once, with the files still being written, except with `force`, which saves at
        any rate, waits until all is on disk and tries again for as long as it is allowed to.

        Args:
          step: steps done.
          state: any pytree of arrays; it may be donated right after this call.
          metadata: what else a reader needs to know, as JSON, or a function that makes it.
          due: save it at any rate, as one that is about to be evaluated.
          force: for a last checkpoint, before the process ends.

        Raises:
          SaveFailed: when saves have failed for `checkpoint.retry_seconds`.
        """
        due = self._is_due(step, due)
        saved = step in self._manager.all_steps() and self._in_flight != step
        if saved or not (due or force):
            return False
        metadata = metadata() if callable(metadata) else metadata
        content = {"step": step, **metadata}
        if not force:
            self._begin(step, state, content)
            return True
        while not self._settle(step):
            self._stop_if(self._retries.hopeless(None))
            self._retries.pause()
            self._begin(step, state, content)
        return True

    def wait(self):
        """Return once the save in flight is on disk, or has failed and been reported."""
        self._settle(self._in_flight)

    def close(self):
        try:
            self.wait()
        finally:
            self._manager.close()

    def _is_due(self, step: int, due: bool) -> bool:
        """The same on every process: process 0's clock decides, and a failure of one is of all."""
        cfg = self._cfg
        by_step = due or (cfg.every_steps is not None and step % cfg.every_steps == 0)
        if jax.process_count() > 1 and step < self._next_talk and not by_step:
            return False
        now = time.monotonic()
        busy = self._in_flight is not None and self._error is None
        if busy and not (busy := self._manager.is_saving_in_progress()):
            self._collect()
        minutes = cfg.every_minutes
        by_clock = minutes is not None and now - self._last_save >= 60 * minutes
        if self._retries.failing or (by_clock and self._is_remote):
            by_clock = self._retries.may_try()
        hopeless = self._retries.hopeless(self._last_save if busy else None)
        last_step, last_time = self._talked or (step, now)
        pace = (step - last_step) / max(1e-3, now - last_time)
        talk_in = int(np.clip(pace * AGREE_SECONDS, 1, 1000))
        mine = [busy, self._error is not None, self._retries.failing, by_clock, hopeless, talk_in]
        notes = _exchange(mine)
        busy, error = notes[:, 0].any(), notes[:, 1].any()
        failing, by_clock, hopeless, talk_in = notes[0, 2:]
        self._next_talk, self._talked = step + int(talk_in), (step, now)
        if hopeless:
            raise self._retries.last_words(max(self.steps(), default=0))
        if not busy and self._in_flight is not None:
            self._conclude(failed=bool(error))
            failing = error
        # A save by the clock can wait until the one before it is done; one by the step cannot,
        # unless saves have been failing: then it is for process 0 to say when to try again.
        return bool((by_clock and not busy) or (not failing and by_step))

    def record(self, step: int, metrics: dict[str, float]):
        """Keep what an evaluation of a step found; the best step by it is not deleted."""
        name = self._cfg.keep_best_by
        if name is not None and name not in metrics:
            log.error("checkpoint.keep_best_by=%s was not measured: %s were", name, sorted(metrics))
        if jax.process_index() == 0:
            retention.record(self.directory, step, metrics)

    def is_evaluated(self, step: int) -> bool:
        """Whether a saved step was evaluated."""
        return retention.is_recorded(self.directory, step)

    def _begin(self, step: int, state: Any, content: dict):
        """Copy the state off the devices and start to write it."""
        self._settle(step)
        self._tidy()
        self._in_flight, self._last_save = step, time.monotonic()
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(content)
        )
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            self._error = error

    def _collect(self):
        """Wait for the background thread and keep its error."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._error = error

    def _settle(self, step: int | None) -> bool:
        """Wait for the save in flight, agree on how it went, and say whether `step` is saved."""
        if self._in_flight is not None:
            self._collect()
            self._conclude(failed=bool(_exchange([self._error is not None]).any()))
        return step in self._manager.all_steps()

    def _conclude(self, *, failed: bool):
        """The end of a save, on all processes: note it, or plan the next try."""
        step, error = self._in_flight, self._error
        self._in_flight = self._error = None
        if failed:
            self._retries.failed(f"step {step}", error)
            self._stale = True
            if not self._is_remote:  # else the training would wait for a bucket out of reach
                self._tidy()
        else:
            self._retries.succeeded(step)
            if self._on_saved is not None:
                self._on_saved(step)

    def _tidy(self):
        """After a failure: half-written steps would keep a full disk full."""
        if not self._stale:
            return
        try:
            if jax.process_index() == 0:
                for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
                    path.rmtree(missing_ok=True)
            self._manager.reload()
            self._stale = False
        except Exception as error:  # the storage is still out of reach: before the next save then
            log.debug("Partial checkpoints are left in %s: %s", self.directory, error)

    def _stop_if(self, hopeless: bool):
        if _exchange([hopeless])[0, 0]:
            raise self._retries.last_words(max(self.steps(), default=0))

    def _write_manifest(self):
        """Runs on process 0 when all processes' files of a step are there, before its commit.

        A checkpoint counts when it can be read: its structure is opened once, and what cannot be
        opened gets no manifest, which makes the save one that failed.
        """
        step = self._in_flight
        for path in self.directory.iterdir():
            if path.name == str(step) or path.name.startswith(f"{step}.orbax-checkpoint-tmp"):
                structure.check_readable(path)
                manifest.write(path)

    # ---------------------------------------------------------------------------- restoring

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest intact checkpoint, or None in a folder without any.

        Damaged and incomplete ones that are newer are moved to the folder `damaged`.

        Args:
          abstract_state: `jax.ShapeDtypeStruct`s with the shardings to restore onto; the mesh may
            be another than the one that the checkpoint was saved from.

        Raises:
          ValueError: when there are checkpoints and none is intact, or when the state has other
            parts or shapes than the saved one.
        """
        problems = {}
        for step in reversed(self.steps()):
            problem = self._damage(step)
            if problem is None:
                break
            problems[step] = problem
        else:
            if problems:
                listed = "; ".join(f"step {step}: {text}" for step, text in problems.items())
                raise ValueError(
                    f"No checkpoint in {self.directory} is intact ({listed}). Put an intact copy "
                    "of one there, or start again with another --workdir."
                )
            return None
        self._set_aside(problems)
        saved = self._manager.item_metadata(step)["state"].tree
        to_read = old_layouts.as_saved(abstract_state, saved)
        structure.compare(self.directory / str(step), saved, to_read)
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(to_read), metadata=ocp.args.JsonRestore()
            ),
        )
        state = old_layouts.as_wanted(items["state"], abstract_state)
        return Restored(state, step, items["metadata"])

    def _damage(self, step: int) -> str | None:
        part, parts = jax.process_index(), jax.process_count()
        problem = manifest.damage(self.directory / str(step), part=part, parts=parts)
        if _exchange([problem is not None]).any():
            return problem or "another process found damage in it"
        return None

    def _set_aside(self, problems: dict[int, str]):
        for step, problem in problems.items():
            target = self.directory / SET_ASIDE / str(step)
            if jax.process_index() == 0:
                target.parent.mkdir(exist_ok=True)
                # A folder in a bucket exists only when there is something in it.
                (target.parent / "README.txt").write_text("Checkpoints that failed their check.\n")
                there = {path.name for path in target.parent.iterdir()}
                names = itertools.chain([str(step)], (f"{step}.{n}" for n in itertools.count(1)))
                target = target.with_name(next(name for name in names if name not in there))
                (self.directory / str(step)).rename(target)
            log.warning(
                "CHECKPOINT OF STEP %d IS DAMAGED: %s. It was moved to %s; an older one is used",
                *(step, problem, target),
            )
        _exchange([0])  # nobody lists the folder before process 0 is done
        self._manager.reload()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        # Orbax would ask JAX's preemption service with numbers of its own, from a thread of its
        # own, and so move the step on which all processes agree. `Preemption` alone asks.
        del step
        return False


def _of_process_0(values: list[bool]) -> list[bool]:
    """What process 0 says. All must call it, in the same order."""
    return _exchange(values)[0].astype(bool).tolist()


def _exchange(values: list) -> np.ndarray:
    """(processes, values): what every process says. All must call it, in the same order."""
    own = np.asarray([values], np.int32)
    return own if jax.process_count() == 1 else multihost_utils.process_allgather(own[0])

"""The folder of a run: its files are written whole or not at all, and one process owns it."""

import contextlib
import dataclasses
import fcntl
import io
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from etils import epath

from clip_jax.config import ModelConfig, TrainConfig
from clip_jax.config_io import from_json, run_settings
from clip_jax.config_io import to_json as settings_to_json
from clip_jax.redaction import redact
from clip_jax.runs.results import (
    METRICS,
    SNAPSHOTS,
    dump_json,
    parse_metric_lines,
    read_metric_lines,
)
from clip_jax.storage import atomic_write

log = logging.getLogger(__name__)

RESUMED_LINES = 200  # of metrics.jsonl that a kill may have kept from other loggers, at least
UPLOAD_EVERY_S = 60.0  # of metrics.jsonl to a bucket, whose objects cannot be appended to

BUCKETS = ("gs", "s3", "az", "hf")  # that epath reads and writes


def can_hold_runs(path: str) -> bool:
    """Whether a path or a URL is a place that runs may live in."""
    scheme, found, _ = path.partition("://")
    return not found or scheme in BUCKETS


class RunDirectory:
    """A context manager: inside it the folder exists, is writable and belongs to this run.

    Args:
      path: a local folder or a bucket's URL.
      main: whether this is the process that writes (process 0); the others only read.

    Raises:
      ValueError: the name is not UTF-8, or the URL is of no bucket; on entering, when the folder
        cannot be written, or another process trains in it.
    """

    def __init__(self, path: str | os.PathLike, *, main: bool = True):
        path = self._named = os.fspath(path)
        if not path.strip():
            raise ValueError("the run directory has an empty name: name a folder")
        if not can_hold_runs(path):
            known = ", ".join(f"{name}://" for name in BUCKETS)
            raise ValueError(f"{redact(path)}: a run lives in a folder or at {known}")
        # Orbax takes no relative path, and a `cd` later on must not move the run.
        path = path if "://" in path else os.path.abspath(os.path.expanduser(path))
        try:
            path.encode()
        except UnicodeEncodeError as error:  # TensorStore could write no checkpoint there
            raise ValueError(
                f"the run directory {path!a} has a name that is not UTF-8 as Python reads it: choose "
                "another --workdir, or set LC_ALL=C.UTF-8"
            ) from error
        self.path = epath.Path(path)
        self._main = main
        self._lock: contextlib.ExitStack | None = None
        self._metrics: IO | None = None
        self._lines: list[str] = []  # of metrics.jsonl, where the folder is remote
        self._uploaded = 0.0
        self.resumed_metrics: list[dict] = []  # the last lines before this start

    def __enter__(self) -> "RunDirectory":
        if self._main:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                probe = self.path / ".writable"
                probe.write_text("")
                probe.unlink(missing_ok=True)  # another start may have removed it
            except OSError as error:
                raise ValueError(
                    f"workdir={self._named} cannot be written ({error.strerror or error}): choose "
                    "another --workdir, or make it writable"
                ) from error
            self._take_lock()
            self._remove_partial_files()
        if not self.is_local:
            self._lines = [dump_json(values) + "\n" for values in self.metrics()]
        return self

    def __exit__(self, kind, error, traceback):
        self._close_metrics()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def is_local(self) -> bool:
        return "://" not in os.fspath(self.path)

    @property
    def holds_run(self) -> bool:
        """Whether a run has begun here. Released weights have a config.json of their own as well."""
        return (self.path / "model.json").exists()

    @property
    def newest_events(self) -> int:
        """The second in the name of the newest TensorBoard file of an earlier start; 0: there is none."""
        names = [path.name.split(".") for path in self.path.iterdir()]
        found = [name[3] for name in names if name[:3] == ["events", "out", "tfevents"]]
        return max((int(second) for second in found if second.isdigit()), default=0)

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> epath.Path:
        return self.path / "tokenizer"

    # -------------------------------------------------------------------------------- JSON

    def write_json(self, name: str, content: Any):
        """Write a file of the folder, without secrets; a reader sees the old one or the new one."""
        if self._main:
            atomic_write(self.path / name, dump_json(redact(content), indent=2))

    def read_json(self, name: str) -> dict | None:
        """What `write_json` wrote, or None where there is no such file."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): restore or remove it") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a JSON object: restore or remove it")
        return content

    def note_saved(self, step: int):
        """A checkpoint of this step is on disk."""
        with contextlib.suppress(OSError):  # the checkpoint is there without the note
            self.write_json("saved.json", {"step": step})

    def reopen_if_removed(self) -> bool:
        """Whether somebody has removed or renamed the folder of a run that lives; then it begins again."""
        if not self._main or (self.path / "config.json").exists():
            return False
        log.error("%s was removed or renamed. Its files are written again", self.path)
        self.__exit__(None, None, None)
        self.__enter__()
        return True

    def check_checkpoints(self):
        """Refuse to start again where a run has saved steps and its checkpoints are gone.

        Call it before the folder of checkpoints is made.

        Raises:
          ValueError: saved steps are known and no checkpoint is there.
        """
        folder = self.checkpoints
        there = folder.exists() and any(
            path.name.isdigit() or path.name == "damaged" for path in folder.iterdir()
        )
        if there:
            return
        saved = self.read_json("saved.json")
        step = saved.get("step", 0) if saved else 0
        if not step and not folder.exists():
            step = max((line["step"] for line in self.metrics()), default=0)
        if step:
            raise ValueError(
                f"{self.path} holds a run that has done {step} steps, and {folder} has no "
                "checkpoint: restore that folder, or start a new run with another --workdir"
            )

    def save_config(self, cfg: TrainConfig, model: ModelConfig):
        self.write_json("config.json", run_settings(cfg))
        self.write_json("model.json", settings_to_json(model))

    def load_config(self) -> TrainConfig | None:
        """The settings of the run that is in the folder, or None in an empty one."""
        return self.config_of({"config": self.read_json("config.json")})

    def config_of(self, metadata: dict) -> TrainConfig | None:
        """The settings that were saved with a checkpoint of the run, or None where there are none."""
        data, origin = metadata.get("config"), os.fspath(self.path / "config.json")
        cfg = data and from_json(TrainConfig, data, origin=origin)
        return cfg and dataclasses.replace(cfg, workdir=self._named)  # it may have been moved

    def load_model_config(self) -> ModelConfig | None:
        data = self.read_json("model.json")
        return data and from_json(ModelConfig, data, origin=os.fspath(self.path / "model.json"))

    # ----------------------------------------------------------------------------- metrics

    def metrics(self) -> list[dict]:
        """The lines of metrics.jsonl. A last line that a kill cut off is skipped."""
        if self.is_local or not self._lines:
            return read_metric_lines(self.path)
        return parse_metric_lines(self._lines)

    def append_metrics(self, values: dict):
        """Add a line to metrics.jsonl: {"step": 20, "loss": 1.5, ...}.

        Raises:
          OSError: the disk is full, or the storage does not answer.
        """
        if not self._main:
            return
        line = dump_json(redact(values)) + "\n"
        if not self.is_local:
            self._lines.append(line)
            if time.monotonic() - self._uploaded > UPLOAD_EVERY_S:
                self._upload()
            return
        try:
            if self._metrics is None:
                self._metrics = _open_to_append(self.path / METRICS)
            self._metrics.write(line)
            self._metrics.flush()
        except OSError:
            self._close_metrics()
            raise

    def rewind_metrics(self, step: int, *, evaluated: bool = True):
        """Remove the lines of what is about to be done again.

        Args:
          step: the steps after it are.
          evaluated: False: its evaluation is, too.
        """
        kept = [line for line in self.metrics() if line["step"] <= step]
        if not evaluated:
            kept = [line for line in kept if line["step"] < step or not _of_evaluation(line)]
        first = kept[-RESUMED_LINES:][0]["step"] if kept else 0
        self.resumed_metrics = [line for line in kept if line["step"] >= first]
        text = "".join(dump_json(line) + "\n" for line in kept)
        self._close_metrics()
        if self._main and (self.path / METRICS).exists():
            try:
                atomic_write(self.path / METRICS, text)
            except OSError as error:
                log.warning("metrics.jsonl cannot be written: %s", error)
        if not self.is_local:
            self._lines = text.splitlines(keepends=True)

    def _upload(self):
        self._uploaded = time.monotonic()
        (self.path / METRICS).write_text("".join(self._lines))

    def _close_metrics(self):
        if self._lines and self._main:
            try:
                self._upload()
            except OSError as error:
                log.warning("metrics.jsonl could not be written: %s", error)
        if self._metrics is not None:
            with contextlib.suppress(OSError):
                self._metrics.close()
            self._metrics = None

    def _remove_partial_files(self):
        """What a kill has left of a file that was being written."""
        if not self.is_local:
            return
        for folder in (self.path, self.checkpoints, self.path / SNAPSHOTS):
            with contextlib.suppress(OSError):
                for path in folder.iterdir():
                    if path.name.startswith(".") and path.name.endswith(".partial"):
                        path.unlink()

    # -------------------------------------------------------------------------------- lock

    def _take_lock(self):
        if not self.is_local:
            log.warning("%s cannot be locked: see that one run alone writes there", self.path)
            return
        path = self.path / "run.lock"
        # It is held open as long as the run lives.
        file = Path(path).open("a+", encoding="utf-8")  # noqa: SIM115
        folder = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The kernel lets go of it when the process ends, however it ends. The folder is locked
            # too, because a person may delete the file while the run lives.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with _unless_not_for_folders():
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise ValueError(
                f"workdir={self._named} is in use by {holder}: wait for it, stop it, or choose "
                "another --workdir"
            ) from None
        except OSError as error:
            log.warning(
                "%s cannot be locked (%s): see that one run alone writes there", path, error
            )
            file.close()
            os.close(folder)
            return
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n")
        file.flush()
        self._lock = contextlib.ExitStack()
        self._lock.callback(os.close, folder)
        self._lock.callback(file.close)
        # A data worker that outlives its killed parent must not keep the lock.
        os.register_at_fork(after_in_child=self._lock.close)


def _of_evaluation(line: dict) -> bool:
    return all(name == "step" or name.startswith("eval/") for name in line)


@contextlib.contextmanager
def _unless_not_for_folders() -> Iterator[None]:
    """Some network file systems lock files alone."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        log.debug("The folder itself cannot be locked: %s", error)


def _open_to_append(path: epath.Path) -> IO:
    """A file of lines, in which a half-written last one does not swallow the next."""
    file = open(path, "a+b")  # noqa: SIM115
    if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return io.TextIOWrapper(file, encoding="utf-8")

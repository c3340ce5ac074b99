"""Each of several processes keeps its log lines in a file of its own, RUN/logs/process-NN.log."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from clip_jax.distributed import initialize
from clip_jax.redaction import redact

log = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextlib.contextmanager
def process_logs(run: Path, *, is_local: bool) -> Iterator[None]:
    """Inside it, what this process logs goes to its file too, from INFO on; warnings are also shown.

    A single process has no such file. Nor has one whose run directory is a bucket, which cannot be
    appended to: there the console is all, and launchers keep it.
    """
    if not (initialize.several() and is_local):
        yield
        return
    index, count = initialize.own_index(), jax.process_count()
    path = run / "logs" / f"process-{index:0{max(2, len(str(count - 1)))}}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Masked(FORMAT))
    ours, root = logging.getLogger("clip_jax"), logging.getLogger()
    before = ours.level, [(shown, shown.level) for shown in root.handlers]
    for shown in root.handlers:
        shown.setLevel(max(shown.level, logging.WARNING))
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        log.info(
            "process %d of %d, pid %d on %s: %s",
            *(index, count, os.getpid(), socket.gethostname(), " ".join(sys.argv)),
        )
        log.info("devices of its own: %s", ", ".join(map(str, jax.local_devices())))
        yield
        log.info("the end")
    except BaseException as error:
        log.info("the end, by an error", exc_info=error)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
        ours.setLevel(before[0])
        for shown, level in before[1]:
            shown.setLevel(level)


class _Masked(logging.Formatter):
    """Tracebacks may quote what messages do not."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))

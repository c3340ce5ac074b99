"""When one of several processes fails, all of them leave at once, and all say why.

Without this, the others would wait in a collective for the one that is gone, and that one in JAX's
shutdown for the others: 300 s, then a C++ abort on both, with an exit code that says nothing.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from clip_jax.config import TrainConfig
from clip_jax.distributed import agreement, initialize
from clip_jax.distributed.preemption import RETRY_EXIT_CODE
from clip_jax.distributed.rendezvous import ProcessesMissing
from clip_jax.redaction import redact

log = logging.getLogger(__name__)

PLACE = "clip_jax/failed"
ASK_EVERY_S = 2.0  # whether another process has failed
HEAR_S = 5.0  # that process 0, which keeps the news, waits for the others to hear them
GRACE_S = 30.0  # for a process that fails to put its files in order; a save may be under way
GRACE_LOST_S = 5.0  # the same when another is gone, without which no save ends

# How the loss of another process shows: in the collectives of CPUs and GPUs, and in JAX's service.
LOST = re.compile(r"Gloo|NCCL|^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)")

_leaving = threading.Event()


class OtherFailed(ValueError):
    """Another process of the job has failed, and this one is well."""


def together(train: Callable[[TrainConfig], int]) -> Callable[[TrainConfig], int]:
    """`train`, by all processes of the job: they meet before it, and leave it together."""

    @functools.wraps(train)
    def joined(cfg: TrainConfig) -> int:
        try:
            initialize.initialize(cfg.distributed, agreement.describe(cfg), agreement.differences)
            with failing_together():
                return train(cfg)
        except ProcessesMissing as error:
            log.error("%s", error)
            return RETRY_EXIT_CODE

    return joined


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """An exception of one process inside it ends all of them. Alone, it does nothing.

    Raises:
      ProcessesMissing: instead of the error that a collective gives when a process was killed.
      OtherFailed: instead of that error, when the other process has said why it left.
    """
    if not initialize.several():
        yield
        return
    stop = threading.Event()
    threading.Thread(target=_watch, args=(stop,), name="failing together", daemon=True).start()
    try:
        yield
    except Exception as error:
        stop.set()
        if _leaving.is_set():
            raise
        if _is_loss(error):
            meaning = _explanation(error)
            _end_soon(meaning, GRACE_LOST_S)
            raise meaning from error
        if not isinstance(error, ProcessesMissing):
            _tell(error)
        _end_soon(error, GRACE_S)
        raise
    finally:
        stop.set()


def _explanation(error: Exception) -> Exception:
    """What a collective that broke off means: the others are asked for it."""
    log.info("A collective broke off", exc_info=error)
    for _ in range(3):
        if said := _ask():
            return OtherFailed(said)
        time.sleep(ASK_EVERY_S / 2)
    return ProcessesMissing(
        f"another process is gone ({str(error).splitlines()[0][:120]}): the logs of the others say "
        "which. Start all of them again: they resume"
    )


def _is_loss(error: Exception) -> bool:
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return known and bool(LOST.search(str(error)))


def _tell(error: Exception):
    """Leave a word for the other processes."""
    text = redact(f"{type(error).__name__}: {error}")
    log.info("This process fails, and tells the others", exc_info=error)
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        initialize.store().key_value_set(
            f"{PLACE}/{initialize.own_index()}", json.dumps(text[:2000]), allow_overwrite=True
        )
    if initialize.own_index() == 0:
        time.sleep(HEAR_S)


def _ask() -> str:
    """What another process that has failed says, or "" ."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        for key, text in initialize.store().key_value_dir_get(PLACE):
            number = key.rpartition("/")[2]
            if number != str(initialize.own_index()):
                return f"process {number} failed, and so all leave: {json.loads(text)}"
    return ""


def _watch(stop: threading.Event):
    """While this process waits in a collective, nobody else can find out that it is in vain."""
    while not stop.wait(ASK_EVERY_S):
        if not (said := _ask()):
            continue
        # An error that all processes have is on its way in this one too.
        if not stop.wait(HEAR_S):
            _leave(2, said)


def _end_soon(error: Exception, grace_s: float):
    """Let the process end as it does, but neither wait for JAX's shutdown nor for ever."""
    _leaving.set()
    code = 1 if isinstance(error, RuntimeError) else 2
    if isinstance(error, ProcessesMissing):
        code = RETRY_EXIT_CODE
    atexit.register(_leave, code)  # the last to be registered is the first to run
    timer = threading.Timer(grace_s, _leave, (code, str(error)))
    timer.daemon = True
    timer.start()


def _leave(code: int, text: str = ""):
    if text:
        log.error("%s", text)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)

"""When one of several processes fails, all of them leave at once, and all say why.

Without this, the others would wait in a collective for the one that is gone, and that one in JAX's
shutdown for the others: 300 s, then a C++ abort on both, with an exit code that says nothing.
"""

import atexit
import contextlib
import functools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator

import jax

from clip_jax.config import TrainConfig
from clip_jax.distributed import agreement, initialize
from clip_jax.distributed.preemption import RETRY_EXIT_CODE
from clip_jax.distributed.rendezvous import ProcessesMissing
from clip_jax.redaction import redact

log = logging.getLogger(__name__)

HEAR_S = 5.0  # for an error of this process's own, when another one has failed
GRACE_S = 30.0  # for a process that fails to put its files in order; a save may be under way
GRACE_LOST_S = 5.0  # the same when another is gone, without which no save ends

# How the loss of another process shows: in the collectives of CPUs and GPUs, and in JAX's service.
LOST = re.compile(r"Gloo|NCCL|^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)")


class OtherFailed(ValueError):
    """Another process of the job has failed, and this one is well."""


def together(work: Callable[..., int]) -> Callable[..., int]:
    """`work`, by all processes of the job: they meet before it, and leave it together."""

    @functools.wraps(work)
    def joined(cfg: TrainConfig, **options) -> int:
        try:
            initialize.initialize(
                cfg.distributed, agreement.describe(cfg), agreement.differences, on_news=_news
            )
            with failing_together():
                code = work(cfg, **options)
            _news.done(code)
            return code
        except ProcessesMissing as error:
            log.error("%s", error)
            return RETRY_EXIT_CODE

    return joined


class _News:
    """What other processes say that have failed, or that they are gone; called from a thread.

    A process that waits in a collective cannot find out by itself that it is in vain.
    """

    def __init__(self):
        self.leaving = False  # whether this process ends by an error
        self._text, self._code = "", 0
        self._came, self._stop = threading.Event(), threading.Event()
        self._exit_code: int | None = None  # of this process, once it has ended its work

    def __call__(self, text: str, code: int):
        if self._came.is_set():
            return
        self._text, self._code = text, code
        self._came.set()
        threading.Thread(target=self._leave_soon, name="leaving", daemon=True).start()

    def _leave_soon(self):
        # An error that all processes have is on its way in this one too.
        self._stop.wait(HEAR_S)
        if self._exit_code is not None:
            _leave(self._exit_code)  # without JAX's shutdown, which waits for all
        if not self.leaving:
            _leave(self._code, self._text)

    def done(self, code: int):
        """This process has ended well: the loss of another one no longer matters to it."""
        self._exit_code = code
        if (lifeline := initialize.lifeline()) is not None:
            lifeline.done()
        if self._came.is_set():
            _leave(code)

    def meaning(self, error: Exception) -> Exception:
        """What an error is, which may be that a collective broke off: the others are asked."""
        if not is_loss(error):
            return error
        log.info("A collective broke off", exc_info=error)
        self._came.wait(HEAR_S)
        if self._came.is_set() and self._code != RETRY_EXIT_CODE:
            return OtherFailed(self._text)
        why = self._text or f"another process is gone ({str(error).splitlines()[0][:120]})"
        return ProcessesMissing(why)

    def end(self, error: Exception):
        """Tell the others, and let the process end as it does, without JAX's shutdown."""
        self.leaving = True
        self._stop.set()
        code = 1 if isinstance(error, RuntimeError) else 2
        if isinstance(error, ProcessesMissing):
            code = RETRY_EXIT_CODE
        if not self._came.is_set() and (lifeline := initialize.lifeline()) is not None:
            own, text = initialize.own_index(), redact(f"{type(error).__name__}: {error}")
            log.info("This process fails, and tells the others", exc_info=error)
            lifeline.tell(f"process {own} failed, and so all leave: {text[:2000]}", code)
        atexit.register(_leave, code)  # the last to be registered is the first to run
        grace_s = GRACE_LOST_S if isinstance(error, ProcessesMissing | OtherFailed) else GRACE_S
        timer = threading.Timer(grace_s, _leave, (code, str(error)))
        timer.daemon = True
        timer.start()


_news = _News()


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
    try:
        yield
    except Exception as error:
        if _news.leaving:
            raise
        meaning = _news.meaning(error)
        _news.end(meaning)
        if meaning is error:
            raise
        raise meaning from error


def is_loss(error: Exception) -> bool:
    """Whether an error is how the loss of another process shows."""
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return known and bool(LOST.search(str(error)))


def _leave(code: int, text: str = ""):
    if text:
        log.error("%s", text)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)

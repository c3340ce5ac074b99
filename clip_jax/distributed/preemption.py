"""A request to leave (preemption, Ctrl-C), answered by all processes at the same moment."""

import os
import signal
import sys

import jax
from jax.experimental import multihost_utils

RETRY_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start the same command again, and it resumes
# What batch systems send some time before they kill (SIGUSR1: Slurm, SGE; SIGUSR2: LSF, SGE; SIGXCPU:
# limits of processor time), and a terminal that is closed. Windows has none of them.
LEAVE_SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
INTERRUPT_EXIT_CODE = 130  # 128 + SIGINT, as shells say: a person asked, so nobody starts it again


class Preemption:
    """Whether to save and leave. A context manager, entered after `jax.distributed.initialize`.

    SIGTERM (how Kubernetes, TPU VMs and Slurm announce a preemption), LEAVE_SIGNALS and the first
    Ctrl-C ask to leave after the step in hand; a second Ctrl-C leaves at once.

    `requested` is a meeting of all processes: each must call it equally often, in training after
    every step and in evaluation after every batch. It is cheap: no device waits for it.
    """

    def __init__(self):
        self._asked = False
        self._interrupted = False
        # Also where JAX's service received it, or another process.
        self._first: int = signal.SIGTERM
        self._meetings = 0
        self._agreed = False
        self._before = {}

    def __enter__(self) -> "Preemption":
        self._install(signal.SIGINT, self._on_interrupt)
        for name in LEAVE_SIGNALS:
            number = getattr(signal, name, None)
            # nohup ignores SIGHUP: the person wants the run to outlive the terminal.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._install(number, self._on_leave)
        # With several processes JAX's own service catches SIGTERM and spreads it; a handler of
        # Python's would take the signal away from it.
        if not jax.distributed.is_initialized():
            self._install(signal.SIGTERM, self._on_terminate)
        return self

    def __exit__(self, kind, error, traceback):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """True once any process received a signal; on all processes at the same call."""
        if jax.distributed.is_initialized():
            # The service meets at one number and says True there alone. Our own count serves
            # evaluation too, where the training step stands still.
            self._meetings += 1
            self._agreed |= multihost_utils.reached_preemption_sync_point(self._meetings)
        else:
            self._agreed = self._asked
        return self._agreed

    def requested_alone(self) -> bool:
        """Whether to leave before the next step: known to a process that has no others to meet."""
        return self._asked and not jax.distributed.is_initialized()

    @property
    def exit_code(self) -> int:
        """The exit code after a signal."""
        return INTERRUPT_EXIT_CODE if self._interrupted else RETRY_EXIT_CODE

    @property
    def signal_name(self) -> str:
        """What asked to leave, such as "SIGTERM"."""
        return signal.Signals(signal.SIGINT if self._interrupted else self._first).name

    def _install(self, number: int, handler):
        self._before[number] = signal.signal(number, handler)

    def _on_leave(self, number, frame):
        del frame
        if not self._asked:
            self._first = number
        self._asked = True
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the other processes

    def _on_terminate(self, number, frame):
        del number, frame
        self._asked = True

    def _on_interrupt(self, number, frame):
        if self._interrupted:
            print("\nLeaving at once.", file=sys.stderr, flush=True)
            os._exit(INTERRUPT_EXIT_CODE)
        self._asked = self._interrupted = True
        print(
            "\nInterrupted: finishing the step, saving, leaving. Ctrl-C again leaves at once.",
            file=sys.stderr,
            flush=True,
        )
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # so that the other processes hear of it

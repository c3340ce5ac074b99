"""The real command in processes of its own, with faults put into them. Forked, so a start is quick.

`Command` starts `clip-jax` in a process that has the program loaded already (multiprocessing's
fork server), with its output in a file. FAULTS change one thing in that process beforehand; what
they stand for happens in the machine, the storage or the data, which a test cannot break for real.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["clip_jax.cli.main", "command"])


class Command:
    """A `clip-jax` that runs. A context manager, which ends it."""

    def __init__(self, *args: str, output: Path, fault: str | None = None, devices: int = 1):
        self._output = output
        output.write_text("")
        # Through a pipe, because `limit_files` would limit a file of its own as well.
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(
            target=_run, args=(list(map(str, args)), theirs, fault, devices)
        )
        self._process.start()
        theirs.close()
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    def _read(self, ours):
        with ours, self._output.open("ab", buffering=0) as file:
            while data := os.read(ours.fileno(), 1 << 16):
                file.write(data)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *exc):
        self._process.kill()
        self._process.join()
        self._reader.join(10)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    @property
    def text(self) -> str:
        """What it has written so far, on both streams."""
        return self._output.read_text()

    def signal(self, number: int):
        os.kill(self.pid, number)

    def limit_files(self, size: int):
        """From now on no file of it may grow beyond `size` bytes: a disk quota. -1: no limit."""
        hard = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, hard))

    def wait_until(self, done: Callable[[], bool], *, timeout_s: float = 240):
        """Wait while it runs, until `done()`."""
        end = time.monotonic() + timeout_s
        while not done():
            assert self._process.is_alive(), f"it ended with {self._process.exitcode}: {self.text}"
            assert time.monotonic() < end, f"nothing after {timeout_s} s: {self.text}"
            time.sleep(0.005)

    def wait_for(self, *texts: str):
        """Wait until it has written all of these."""
        self.wait_until(lambda: all(text in self.text for text in texts))

    def end(self, *, timeout_s: float = 300) -> int:
        """Its exit code; minus a signal's number if that ended it."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"it did not end: {self.text}"
        self._reader.join(10)
        return self._process.exitcode


def _run(args: list[str], output: Connection, fault: str | None, devices: int):
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    # The time-out and the emitters as in tests/conftest.py.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} "
        "--xla_cpu_collective_call_terminate_timeout_seconds=600 "
        "--xla_cpu_use_fusion_emitters=false"
    )
    code = 70
    try:
        import jax

        from clip_jax.cli import main as cli

        # Programs of less than half a second are worth keeping too, when a run takes two.
        jax.config.update("jax_compilation_cache_dir", os.environ["CLIP_JAX_TEST_CACHE"])
        cli._cache_compiled_programs = lambda: jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", 0.0
        )
        sys.argv = ["clip-jax", *args]
        if fault is not None:
            for one in fault.split(","):
                name, _, value = one.partition("=")
                FAULTS[name](int(value))
        code = cli.main(args)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        # As the interpreter would end: threads that still write a checkpoint are waited for.
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def save_for_ever(directory: str):
    """A process that does nothing but save; each state is told by its step."""
    process = _CONTEXT.Process(target=_save_for_ever, args=(directory,))
    process.start()
    return process


def _save_for_ever(directory: str):
    import jax.numpy as jnp

    from clip_jax.config import CheckpointConfig
    from clip_jax.runs.checkpoints import Checkpoints

    cfg = CheckpointConfig(every_steps=1, every_minutes=None)
    with Checkpoints(directory, cfg) as checkpoints:
        for step in range(max(checkpoints.steps(), default=0) + 1, 10_000):
            state = {"a": jnp.full(300_000, float(step)), "b": jnp.full((7, 9), step)}
            checkpoints.save(step, state, metadata={})


# ------------------------------------------------------------------------------------- faults


def _at_step(step: int, action: Callable[[], None], *, before: bool = True):
    """Do something when a step is asked for, or when it has been computed."""
    import jax

    from clip_jax.training import loop

    compile_ = loop.compile_step

    def compiled(parts):
        inner = compile_(parts)

        def step_fn(state, batch):
            now = int(state.step) + 1
            if now == step and before:
                action()
            result = inner(state, batch)
            if now == step and not before:
                jax.block_until_ready(result)
                action()
            return result

        return step_fn

    loop.compile_step = compiled


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(step: int):
    """While the devices work on a step."""
    _at_step(step, lambda: threading.Timer(0.001, kill).start())


def kill_in_save(milliseconds: int):
    """So long after the third save of this process began."""
    from clip_jax.runs.checkpoints import Checkpoints

    begin, count = Checkpoints._begin, [0]

    def begun(self, *args):
        count[0] += 1
        if count[0] == 3:
            threading.Timer(milliseconds / 1000, kill).start()
        return begin(self, *args)

    Checkpoints._begin = begun


def kill_between_save_and_data(step: int):
    """When a step's checkpoint is committed and the next batch is asked for."""
    from clip_jax.training.prefetch import Prefetch

    give, count = Prefetch.take, [0]

    def next_batch(self, **options):
        count[0] += 1
        if count[0] == step + 1:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and not _is_committed(step):
                time.sleep(0.001)
            kill()
        return give(self, **options)

    Prefetch.take = next_batch


def _is_committed(step: int) -> bool:
    workdir = Path(sys.argv[sys.argv.index("--workdir") + 1])
    return (workdir / "checkpoints" / str(step) / "MANIFEST.json").exists()


def fail_in_step(step: int):
    """As this process's own data might make it fail."""

    def fail():
        raise ValueError("the disk of this machine is upside down")

    _at_step(step, fail)


def hang_in_step(step: int):
    def wait_for_other_hosts():
        threading.Event().wait()

    _at_step(step, wait_for_other_hosts)


def kill_while_preparing(_: int):
    """After the processes have met, before anything is trained."""
    from clip_jax.training import loop

    loop.prepare = lambda cfg, run: kill()


def in_folder(number: int):
    """The command was started in a folder of its own, as on another host."""
    os.chdir(Path(sys.argv[sys.argv.index("--workdir") + 1]).parent / str(number))


def short_patience(seconds: int):
    """With a file that another host has written and that this one does not see."""
    from clip_jax.distributed import agreement

    agreement.SHARED_S = float(seconds)


def _hold():
    """Until the test makes the file "go" in the run directory."""
    print("holding", flush=True)
    go = Path(sys.argv[sys.argv.index("--workdir") + 1]) / "go"
    while not go.exists():
        time.sleep(0.005)


def hold_in_step(step: int):
    _at_step(step, _hold)


def hold_compiling(_: int):
    from clip_jax.training import loop

    compile_ = loop.compile_step

    def compiled(parts):
        _hold()
        return compile_(parts)

    loop.compile_step = compiled


def slow_evaluation(step: int):
    """The evaluation after a step takes long enough for something to happen from outside."""
    from clip_jax.evaluation.suite import Evaluators
    from clip_jax.training.evaluations import Evaluations

    evaluate, measure, slow = Evaluations._evaluate, Evaluators.__call__, [False]

    def remember(self, now: int, state):
        slow[0] = now == step
        return evaluate(self, now, state)

    def slowly(self, variables, *, should_stop=None):
        def asked() -> bool:
            if slow[0]:
                print("evaluating", flush=True)
                time.sleep(0.3)
            return should_stop()

        return measure(self, variables, should_stop=asked)

    Evaluations._evaluate, Evaluators.__call__ = remember, slowly


def fail_in_evaluation(step: int):
    """As a list of test data with damaged files might, or a full disk."""
    from clip_jax.training.evaluations import Evaluations

    evaluators = Evaluations._evaluate

    def fail(self, now: int, state):
        with self._measuring(now, "evaluation"):
            if now == step:
                raise ValueError("30 of 48 samples are bad")
            return evaluators(self, now, state)
        return True

    Evaluations._evaluate = fail


def fail_to_read_test_data(_: int):
    """As the files of this process's machine might."""
    from clip_jax.data.dataset import EvalDataset

    def read(self, number: int):
        raise OSError("stale file handle")

    EvalDataset.__getitem__ = read


def set_clock_back(step: int):
    """By a day, at a step."""
    real, shift = time.time, [0.0]
    time.time = lambda: real() + shift[0]

    def back():
        shift[0] = -86_400.0
        print("the clock was set back", flush=True)

    _at_step(step, back)


def nan_in_batch(step: int):
    """The loss of one batch, and so its gradients, is not a number."""
    _poison(lambda state: state.step == step - 1)


def nan_from(step: int):
    """A parameter turns infinite, and so does every loss from then on."""
    _poison(lambda state: state.step >= step - 1)


def _poison(when: Callable):
    import jax.numpy as jnp

    from clip_jax.training import step as step_lib

    clean = step_lib.batch_gradients

    def batch_gradients(state, batch, key, *, objective, **rest):
        class Poisoned(type(objective)):
            def __call__(self, *args, **kwargs):
                loss, metrics = super().__call__(*args, **kwargs)
                return loss * jnp.where(when(state), jnp.nan, 1.0), metrics

        poisoned = Poisoned(objective.terms, objective.distributed, objective.tile)
        return clean(state, batch, key, objective=poisoned, **rest)

    step_lib.batch_gradients = batch_gradients


FAULTS = {
    function.__name__: function
    for function in (
        fail_in_step,
        kill_in_step,
        kill_in_save,
        kill_between_save_and_data,
        hang_in_step,
        kill_while_preparing,
        in_folder,
        short_patience,
        hold_in_step,
        hold_compiling,
        slow_evaluation,
        fail_in_evaluation,
        fail_to_read_test_data,
        set_clock_back,
        nan_in_batch,
        nan_from,
    )
}

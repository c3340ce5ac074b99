"""Leaving on request: by signals in one process, and together in two."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from clip_jax.distributed.preemption import INTERRUPT_EXIT_CODE, RETRY_EXIT_CODE, Preemption

LEAVE = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]

STEPS = """
import sys, time
from clip_jax.distributed.preemption import Preemption
with Preemption() as preemption:
    for step in range(1, 2000):
        time.sleep(0.01)
        print(step, flush=True)
        if preemption.requested():
            break
print("saved", step, flush=True)
sys.exit(preemption.exit_code)
"""

TWO = """
import os, sys, time
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("XLA_FLAGS", None)  # of the tests: they have eight devices
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, rank)
from clip_jax.config import CheckpointConfig
from clip_jax.runs.checkpoints import Checkpoints
from clip_jax.distributed.preemption import Preemption
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
place = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P("data"))
# Rank 1 never finds that a minute has passed; process 0 decides.
minutes = 1 / 60 if rank == 0 else 1e9
cfg = CheckpointConfig(every_steps=None, every_minutes=minutes)
add = jax.jit(lambda x: x + 1)
x = jax.device_put(np.zeros(4, np.float32), place)
with Preemption() as preemption, Checkpoints(sys.argv[3], cfg) as checkpoints:
    restored = checkpoints.restore({"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=place)})
    start = 0
    if restored is not None:
        x, start = restored.state["x"], restored.step
        print("restored", start, float(x.addressable_shards[0].data[0]), flush=True)
    for step in range(start + 1, 3000):
        x = add(x)
        time.sleep(0.01)
        print(step, flush=True)
        leaving = preemption.requested()
        # As an evaluation asks between its batches.
        leaving = leaving or (step % 5 == 0 and any(preemption.requested() for _ in range(3)))
        if checkpoints.save(step, {"x": x}, metadata={}, force=leaving):
            print("saved", step, flush=True)
        if leaving:
            break
print("left", step, flush=True)
sys.stdout.flush()
os._exit(preemption.exit_code)
"""


def start(*args, script=STEPS) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, line: str) -> list[str]:
    seen = []
    for text in process.stdout:
        seen.append(text.strip())
        if text.startswith(line):
            return seen
    raise AssertionError(f"no {line!r} in {seen[-5:]}: {process.stderr.read()[-2000:]}")


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, RETRY_EXIT_CODE),
        (signal.SIGINT, INTERRUPT_EXIT_CODE),
    ],
)
def test_a_signal_lets_the_step_end_and_leaves_with_its_own_code(number, code):
    with start() as process:
        seen = wait_for(process, "5")
        process.send_signal(number)
        output, errors = process.communicate()
    *steps, last = seen + output.split()
    assert process.returncode == code
    assert steps[-2:] == [last, "saved"]
    assert ("Ctrl-C again leaves at once" in errors) == (number == signal.SIGINT)


def test_a_second_interrupt_leaves_at_once():
    with start(script=STEPS.replace("preemption.requested()", "False")) as process:
        wait_for(process, "3")
        process.send_signal(signal.SIGINT)
        wait_for(process, "9")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    assert process.returncode == INTERRUPT_EXIT_CODE
    assert "Leaving at once" in errors and "saved" not in output


@pytest.mark.parametrize("number", LEAVE)
def test_the_signal_handlers_of_before_come_back(number):
    before = signal.getsignal(number), signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        assert signal.getsignal(number) != before[0]
        assert not preemption.requested() and not preemption.requested_alone()
        os.kill(os.getpid(), number)
        assert preemption.requested() and preemption.requested()
        assert preemption.requested_alone()
        assert preemption.exit_code == RETRY_EXIT_CODE
        assert preemption.signal_name == number.name
        os.kill(os.getpid(), signal.SIGHUP)
        assert preemption.signal_name == number.name  # the first one is the reason
    assert (signal.getsignal(number), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_two_processes_save_the_same_step_and_leave_though_one_was_asked(tmp_path, rank, number):
    def run_pair():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        return [start(address, index, tmp_path, script=TWO) for index in range(2)]

    ends = []
    for attempt in range(2 if number == signal.SIGTERM else 1):
        pair = run_pair()
        try:
            if attempt:
                seen = wait_for(pair[0], "restored")[-1].split()
                assert seen[1:] == [str(ends[0]), str(float(ends[0]))]
            before = wait_for(pair[0], "saved")[-1]  # by process 0's clock
            assert wait_for(pair[1], "saved")[-1] == before
            time.sleep(0.1)
            pair[rank].send_signal(number)
            outputs = [process.communicate() for process in pair]
        finally:
            for process in pair:
                process.kill()
        lefts = [output.split("\n")[-2] for output, _ in outputs]
        assert lefts[0].startswith("left") and lefts[0] == lefts[1], outputs
        codes = {RETRY_EXIT_CODE, INTERRUPT_EXIT_CODE if number == signal.SIGINT else 75}
        assert {process.returncode for process in pair} == codes
        ends.append(int(lefts[0].split()[1]))
        assert (tmp_path / str(ends[-1]) / "MANIFEST.json").exists()
    assert ends == sorted(set(ends))

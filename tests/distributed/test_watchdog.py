"""The watchdog: it bites a process that hangs, and no other."""

import os
import signal
import subprocess
import sys
import time

import pytest

from clip_jax.distributed.preemption import RETRY_EXIT_CODE
from clip_jax.distributed.watchdog import Watchdog

SCRIPT = """
import sys, threading, time
from clip_jax.distributed import watchdog as lib
lib.TICK_S = 0.05
def wait_for_data_that_never_comes():
    threading.Event().wait(20)
with lib.Watchdog(0.4, sys.argv[1]) as watchdog:
    for _ in range(6):
        time.sleep(0.2)
        watchdog.beat()
    with watchdog.allow("compiling", extra_seconds=5):
        time.sleep(1)
    print("alive", flush=True)
    if sys.argv[2] == "hang":
        wait_for_data_that_never_comes()
print("done", flush=True)
time.sleep(float(sys.argv[3]))
"""


def start(*args) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_hang_ends_with_the_stacks_of_all_threads_and_the_retry_code(tmp_path):
    with start(tmp_path / "stacks.txt", "hang", 0) as process:
        output, errors = process.communicate(timeout=30)
    assert process.returncode == RETRY_EXIT_CODE
    assert output == "alive\n"  # beats and longer phases kept it quiet until then
    for text in errors, (tmp_path / "stacks.txt").read_text():
        assert "no sign of life for 0.4 s while starting (health.hang_seconds)" in text
        assert "in wait_for_data_that_never_comes" in text and "in _watch" in text


@pytest.mark.parametrize("error", ["closed", "full"])
def test_a_hang_ends_though_nobody_can_be_told(tmp_path, error):
    """Standard error is closed, or a pipe that nobody reads any more."""
    prelude = {
        "closed": "import sys; sys.stderr.close()",
        "full": "import fcntl, os; fcntl.fcntl(2, 1031, 4096); os.write(2, b'x' * 4096)",
    }[error]
    script = f"{prelude}\n{SCRIPT}".replace("lib.TICK_S", "lib.SAY_S = 1.0; lib.TICK_S")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "stacks.txt"), "hang", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.wait(timeout=30) == RETRY_EXIT_CODE
        finally:
            process.kill()
    assert "in wait_for_data_that_never_comes" in (tmp_path / "stacks.txt").read_text()


def test_the_watch_ends_with_its_block(tmp_path):
    with start(tmp_path / "stacks.txt", "go", 1) as process:
        output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "alive\ndone\n")
    assert not (tmp_path / "stacks.txt").exists()


def test_the_time_that_a_process_was_stopped_is_no_hang(tmp_path):
    with start(tmp_path / "stacks.txt", "go", 0) as process:
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGCONT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "alive\ndone\n"), errors


@pytest.mark.parametrize("hang_seconds", [0.0, -1.0])
def test_no_limit_means_no_watching(hang_seconds):
    with Watchdog(hang_seconds) as watchdog:
        watchdog.beat()
        assert not watchdog._thread.is_alive()

"""What a person sees never ends a run, and is plain lines where no terminal is."""

import os
import subprocess
import sys

import pytest

from clip_jax.runs import console
from clip_jax.runs.console import Console, duration, tolerant_streams

PRINTS = """
import sys
from clip_jax.runs.console import tolerant_streams
with tolerant_streams():
    for _ in range(2000):
        print("x" * 100, flush=True)
    print("at the end", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("where", ["a pipe without a reader", "/dev/full", "closed"])
def test_output_that_nobody_takes_changes_neither_the_run_nor_its_exit_code(where):
    command = [sys.executable, "-c", PRINTS]
    if where == "closed":
        command = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', *command]
        assert subprocess.run(command).returncode == 7
        return
    if where == "/dev/full":
        with open(where, "w") as full:
            assert subprocess.run(command, stdout=full, stderr=full).returncode == 7
        return
    reader, writer = os.pipe()
    process = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    os.close(reader)
    assert process.wait() == 7


def test_the_streams_of_before_come_back():
    before = sys.stdout, sys.stderr
    with tolerant_streams():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before


def test_a_file_gets_plain_lines_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Console(100, start=0, shown=True, progress=True) as shown:
        for step in range(1, 101):
            now[0] += 1
            shown.update(step)
            shown.show({"loss": f"{step}.5", "": "7 images/s"}, seconds_a_step=60)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/100 (1 %): loss 1.5, 7 images/s, 1 h 39 min left"
    assert lines[-1] == "step 100/100 (100 %): loss 100.5, 7 images/s"
    assert len(lines) == 11  # every 10 s, and the last
    assert "\r" not in "".join(lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(45.2, "45 s"), (61, "1 min"), (3_599, "1 h 0 min"), (12_000, "3 h 20 min")],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text

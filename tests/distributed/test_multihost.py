"""What each process gives is known in all of them."""

import os
import socket
import subprocess
import sys

from clip_jax.distributed.multihost import allgather_json

TWO = """
import json, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, rank)
from clip_jax.distributed.multihost import allgather_json
from clip_jax.runs.bad_samples import own_counts
gathered = allgather_json({"seen": 10 + rank, "shards": ["long name"] * rank})
assert gathered == [{"seen": 10, "shards": []}, {"seen": 11, "shards": ["long name"]}], gathered
assert own_counts(gathered)["seen"] == 10 + rank
assert allgather_json(None) == [None, None]
"""


def test_one_process_gathers_what_it_gives():
    given = [["naïve ☃", 3, None], {"a": []}]
    assert allgather_json(given) == [given]


def test_two_processes_allgather_json_of_different_length():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": env}
    command = [sys.executable, "-c", TWO, address]
    started = [subprocess.Popen([*command, str(rank)], **pipes) for rank in range(2)]
    try:
        for process in started:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output
    finally:
        for process in started:
            process.kill()

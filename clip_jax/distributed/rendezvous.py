"""The first meeting of the processes, before JAX connects them: who is there, and do they fit?

JAX's own meeting ends a process with a C++ abort when another one does not come, and never says
which. Here process 0 listens at the coordinator's port, hears a line of JSON from each of the
others, and answers all of them with what is wrong, or with nothing. Then JAX takes the port over.
"""

import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

KEY = "clip_jax roll call"
MOST_BYTES = 4 << 20  # of an answer; anything longer is not one of ours
PATIENCE_S = 10.0  # with a connection that says nothing
AGAIN_S = 0.2  # between two tries to reach process 0

Judge = Callable[[dict[int, Any]], str]


class ProcessesMissing(ConnectionError):
    """Other processes of the job did not come, or went; starting all of them again may help."""


def call_roll(
    coordinator: str,
    processes: int,
    index: int,
    *,
    description: Any,
    judge: Judge,
    timeout_s: float,
):
    """Return when all processes are there and fit together.

    Args:
      coordinator: host:port of process 0.
      processes: how many there are.
      index: which one this is.
      description: of this process, as JSON.
      judge: run by process 0 on all descriptions; what is wrong, or "".
      timeout_s: how long the processes wait for each other.

    Raises:
      ValueError: what the judge said, or that two processes have one index; on all of them.
      ProcessesMissing: who did not come; on all that came.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"distributed.coordinator={coordinator} must be HOST:PORT")
    answer = {KEY: index, "processes": processes, "description": description}
    end = time.monotonic() + timeout_s
    if index == 0:
        verdict = _listen(int(port), answer, judge, timeout_s, end)
    else:
        verdict = _report(host, int(port), answer, timeout_s, end)
    if verdict["missing"]:
        raise ProcessesMissing(verdict["missing"])
    if verdict["wrong"]:
        raise ValueError(verdict["wrong"])


def _listen(port: int, own: dict, judge: Judge, timeout_s: float, end: float) -> dict:
    """Process 0: hear all the others, judge, tell them."""
    processes = own["processes"]
    descriptions, connections, twice = {0: own["description"]}, [], []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(port, end))
        while len(descriptions) < processes and not twice:
            server.settimeout(max(0.01, end - time.monotonic()))
            try:
                connection, address = server.accept()
            except TimeoutError:
                break
            stack.enter_context(connection)
            connection.settimeout(PATIENCE_S)
            answer = _read(connection)
            if answer is None:
                log.info("Something that is no process of this run came from %s", address[0])
                continue
            connections.append(connection)
            if answer[KEY] in descriptions or answer["processes"] != processes:
                twice.append(
                    f"a process at {address[0]} says that it is process {answer[KEY]} of "
                    f"{answer['processes']}, beside {len(descriptions)} others of {processes}: "
                    "each needs a distributed.process_index of its own, and all the same "
                    "distributed.processes"
                )
            descriptions[answer[KEY]] = answer["description"]
        absent = [str(i) for i in range(processes) if i not in descriptions]
        verdict = {"missing": "", "wrong": twice[0] if twice else ""}
        if absent and not twice:
            verdict["missing"] = (
                f"process {', '.join(absent)} of {processes} did not come within {timeout_s:g} s "
                "(distributed.timeout_seconds): see whether it runs, and whether it reaches "
                f"port {port} of process 0"
            )
        elif not twice:
            verdict["wrong"] = judge(descriptions)
        for connection in connections:
            with contextlib.suppress(OSError):
                _send(connection, verdict)
        for connection in connections:
            # The others close first, so that no rest of a connection keeps JAX from the port.
            with contextlib.suppress(OSError):
                connection.recv(1)
    return verdict


def _report(host: str, port: int, answer: dict, timeout_s: float, end: float) -> dict:
    """The others: reach process 0, and hear what it says."""
    while (left := end - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, port), timeout=left) as connection,
        ):
            _send(connection, answer)
            connection.settimeout(left + PATIENCE_S)  # process 0 may have started later
            if (verdict := _read(connection, known="wrong")) is not None:
                return verdict
        time.sleep(min(AGAIN_S, max(0.0, end - time.monotonic())))
    return {
        "wrong": "",
        "missing": (
            f"process 0 did not answer at {host}:{port} within {timeout_s:g} s "
            "(distributed.timeout_seconds): see whether it runs there"
        ),
    }


def _server(port: int, end: float) -> socket.socket:
    """The coordinator's port, once whoever has it lets go, such as the run before this one."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    while True:
        try:
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=dual, backlog=4096
            )
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"port {port} of distributed.coordinator cannot be had ({error.strerror}): "
                    "choose another, or end the process that has it"
                ) from error
            time.sleep(AGAIN_S)


def _send(connection: socket.socket, content: dict):
    connection.sendall(json.dumps(content).encode() + b"\n")


def _read(connection: socket.socket, known: str = KEY) -> dict | None:
    """A line of JSON, or None if what comes is something else."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            part = connection.recv(1 << 16)
            text += part
            if not part or len(text) > MOST_BYTES:
                return None
        content = json.loads(text)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and known in content else None

"""The first meeting of the processes, before JAX connects them: who is there, and do they fit?

JAX's own meeting ends a process with a C++ abort when another one does not come, and never says
which. Here process 0 listens at the coordinator's port, hears a line of JSON from each of the
others, and answers all of them with what is wrong, or with nothing. Then JAX takes the port over.
The connections stay open: they tell who is gone (`lifeline.py`).
"""

import contextlib
import logging
import resource
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from clip_jax.distributed.connection import Connection
from clip_jax.distributed.lifeline import Lifeline

log = logging.getLogger(__name__)

KEY = "clip_jax roll call"
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
) -> Lifeline:
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
      ProcessesMissing: who did not come, or went away again; on all that came.
    """
    host, _, port = coordinator.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"distributed.coordinator={coordinator} must be HOST:PORT")
    own = {KEY: index, "processes": processes, "host": socket.gethostname()}
    own["description"] = description
    address, end = (host, int(port)), time.monotonic() + timeout_s
    connections: dict[int, Connection] = {}
    try:
        if index == 0:
            verdict, hosts = _listen(address[1], own, judge, timeout_s, end, connections)
        else:
            verdict, hosts = _report(address, own, timeout_s, end, connections)
        if verdict["missing"]:
            raise ProcessesMissing(verdict["missing"])
        if verdict["wrong"]:
            raise ValueError(verdict["wrong"])
    except BaseException:
        for connection in connections.values():
            connection.__exit__()
        raise
    return Lifeline(index, connections, hosts, address)


def _listen(
    port: int,
    own: dict,
    judge: Judge,
    timeout_s: float,
    end: float,
    connections: dict[int, Connection],
) -> tuple[dict, dict[int, str]]:
    """Process 0: hear all the others, judge, tell them. Fills in `connections`."""
    processes = own["processes"]
    descriptions, hosts = {0: own["description"]}, {0: own["host"]}
    verdict, others = {"missing": "", "wrong": ""}, []
    _allow_open_files(processes)
    with selectors.DefaultSelector() as selector, _server(port, end) as server:
        selector.register(server, selectors.EVENT_READ)
        while len(descriptions) < processes and not any(verdict.values()):
            if not (ready := selector.select(max(0.01, end - time.monotonic()))):
                absent = ", ".join(str(i) for i in range(processes) if i not in descriptions)
                verdict["missing"] = (
                    f"process {absent} of {processes} did not come within {timeout_s:g} s "
                    "(distributed.timeout_seconds): see whether it runs, and whether it reaches "
                    f"port {port} of process 0"
                )
            for key, _ in ready:
                if key.data is not None:  # nobody has more to say before the verdict
                    verdict["missing"] = (
                        f"process {key.data} of {processes} on {hosts[key.data]} is gone: its log "
                        "says why. Start all processes again"
                    )
                elif came := _accept(server):
                    connection, answer = came
                    index = answer[KEY]
                    if index in descriptions or answer["processes"] != processes:
                        others.append(connection)
                        verdict["wrong"] = (
                            f"a process on {answer['host']} says that it is process {index} of "
                            f"{answer['processes']}, beside {len(descriptions)} others of "
                            f"{processes}: each needs a distributed.process_index of its own, and "
                            "all the same distributed.processes"
                        )
                        continue
                    descriptions[index], hosts[index] = answer["description"], answer["host"]
                    connections[index] = connection
                    selector.register(connection, selectors.EVENT_READ, index)
    if not any(verdict.values()):
        verdict["wrong"] = judge(descriptions)
    for connection in (*connections.values(), *others):
        with contextlib.suppress(OSError):
            connection.send(verdict)
    for connection in others:
        connection.__exit__()
    return verdict, hosts


def _accept(server: socket.socket) -> tuple[Connection, dict] | None:
    """A process that has come, and what it says; None for something else."""
    try:
        accepted, address = server.accept()
    except OSError:
        return None
    connection = Connection(accepted)
    answer = connection.receive(PATIENCE_S)
    if answer is not None and KEY in answer:
        with contextlib.suppress(OSError):
            connection.send({"heard": socket.gethostname()})
        return connection, answer
    connection.__exit__()
    log.info("Something that is no process of this run came from %s", address[0])
    return None


def _report(
    address: tuple[str, int],
    own: dict,
    timeout_s: float,
    end: float,
    connections: dict[int, Connection],
) -> tuple[dict, dict[int, str]]:
    """The others: reach process 0, and hear what it says. Fills in `connections`."""
    host, port = address
    while (left := end - time.monotonic()) > 0:
        heard = verdict = None
        connection = None
        with contextlib.suppress(OSError):
            connection = Connection(socket.create_connection(address, timeout=left))
            connection.send(own)
            heard = connection.receive(PATIENCE_S)
        if connection is not None and heard is not None and "heard" in heard:
            # Process 0 may have started later, and waits for the others until then.
            verdict = connection.receive(timeout_s + PATIENCE_S)
            if verdict is None or "wrong" not in verdict:
                missing = f"process 0 on {heard['heard']} is gone. Start all processes again"
                verdict = {"wrong": "", "missing": missing}
            connections[0] = connection
            return verdict, {0: heard["heard"]}
        if connection is not None:
            connection.__exit__()
        time.sleep(min(AGAIN_S, max(0.0, end - time.monotonic())))
    missing = (
        f"process 0 did not answer at {host}:{port} within {timeout_s:g} s "
        "(distributed.timeout_seconds): see whether it runs there"
    )
    return {"wrong": "", "missing": missing}, {}


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


def _allow_open_files(processes: int):
    """Two connections with each process, ours and JAX's, are more than many systems allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * processes + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

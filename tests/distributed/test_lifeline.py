"""Who is gone shows at once, over real sockets: processes are objects here."""

import contextlib
import queue
import socket
import threading

import pytest

from clip_jax.distributed import lifeline as lib
from clip_jax.distributed.connection import MOST_BYTES, Connection
from clip_jax.distributed.lifeline import Lifeline

PATIENCE_S = 20


@pytest.fixture
def three(monkeypatch):
    """Three processes: their lifelines, what each of them hears, and how each is killed."""
    monkeypatch.setattr(lib, "ANSWER_S", 0.5)
    monkeypatch.setattr(lib, "TICK_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as coordinator, contextlib.ExitStack() as stack:
        address = coordinator.getsockname()
        pairs = {index: socket.socketpair() for index in (1, 2)}
        ours = {index: Connection(pair[0]) for index, pair in pairs.items()}
        theirs = {index: Connection(pair[1]) for index, pair in pairs.items()}
        hosts = {0: "a", 1: "b", 2: "c"}
        lines = [Lifeline(0, ours, hosts, address)]
        lines += [Lifeline(index, {0: theirs[index]}, hosts, address) for index in (1, 2)]
        heard = [queue.Queue() for _ in lines]
        for line, news in zip(lines, heard, strict=True):
            line.watch(lambda *what, news=news: news.put(what))

        def kill(index: int):
            if index == 0:
                coordinator.close()
                lines[0]._connections = {}  # it says nothing any more
            for pair in pairs.values() if index == 0 else [pairs[index]]:
                pair[min(index, 1)].shutdown(socket.SHUT_RDWR)

        yield lines, heard, kill
        for line in lines:
            line.close()
        for pair in pairs.values():
            for end in pair:
                stack.enter_context(end)


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_all_others_hear_which_process_is_gone(three, killed):
    _, heard, kill = three
    kill(killed)
    for index in {0, 1, 2} - {killed}:
        text, code = heard[index].get(timeout=PATIENCE_S)
        assert f"{killed} on {'abc'[killed]}" in text
        assert code == 75


@pytest.mark.parametrize("failed", [0, 1])
def test_all_others_hear_why_a_process_leaves(three, failed):
    lines, heard, kill = three
    lines[failed].tell("upside down", 2)
    kill(failed)
    for index in {0, 1, 2} - {failed}:
        assert heard[index].get(timeout=PATIENCE_S) == ("upside down", 2)
        assert heard[index].empty()


def test_the_end_of_a_process_that_is_done_is_no_loss(three):
    lines, heard, kill = three
    lines[1].done()
    kill(1)
    lines[2].tell("last", 1)  # is heard after it
    assert heard[0].get(timeout=PATIENCE_S) == ("last", 1)


def test_a_connection_that_breaks_is_no_loss_while_the_process_lives(three):
    lines, heard, kill = three
    said = queue.Queue()
    lines[1].say_alive = lambda: said.put("alive")
    lines[0].is_alive = lambda index: index == 1 and said.get(timeout=PATIENCE_S) == "alive"
    kill(1)
    lines[2].tell("last", 1)
    assert heard[0].get(timeout=PATIENCE_S) == ("last", 1)
    assert heard[1].empty()


@pytest.mark.parametrize("sent", [b"not JSON\n", b"[1]\n", b"x" * (MOST_BYTES + 1), b""])
def test_what_is_no_line_of_json_ends_a_connection(sent):
    ours, theirs = socket.socketpair()

    def send():
        with contextlib.suppress(OSError):
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)

    with Connection(ours) as connection, theirs:
        sender = threading.Thread(target=send)
        sender.start()
        assert connection.receive(5) is None
        connection.__exit__()  # what is sent still has no reader
        sender.join()


def test_two_lines_that_arrive_together_are_two():
    ours, theirs = socket.socketpair()
    with Connection(ours) as connection, Connection(theirs) as other:
        other.send({"a": 1})
        other.send({"b": [2]})
        assert connection.receive(5) == {"a": 1}
        assert connection.receive(5) == {"b": [2]}
        assert not connection.has_line

"""The first meeting, over real sockets: processes are threads here."""

import concurrent.futures
import socket

import pytest

from clip_jax.distributed.connection import Connection
from clip_jax.distributed.rendezvous import KEY, ProcessesMissing, call_roll


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meet(port: int, *answers: tuple[int, str], processes: int | None = None, timeout_s=20.0):
    """What each of the processes (index, description) gets: None, or an exception."""

    def judge(descriptions: dict[int, str]) -> str:
        odd = [index for index, text in descriptions.items() if text != descriptions[0]]
        return f"different: {odd}" if odd else ""

    with concurrent.futures.ThreadPoolExecutor(len(answers)) as pool:
        futures = [
            pool.submit(
                call_roll,
                f"127.0.0.1:{port}",
                processes or len(answers),
                index,
                description=text,
                judge=judge,
                timeout_s=timeout_s,
            )
            for index, text in answers
        ]
        found = [future.exception() for future in futures]
        for future in futures:
            if future.exception() is None:
                future.result().close()
        return found


def test_processes_that_fit_go_on(port):
    assert meet(port, (0, "a"), (1, "a"), (2, "a"), (3, "a")) == [None] * 4


def test_the_port_is_free_for_jax_afterwards(port):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        how = {"description": "a", "judge": lambda _: "", "timeout_s": 20}
        both = [pool.submit(call_roll, f"127.0.0.1:{port}", 2, index, **how) for index in range(2)]
        lifelines = [future.result() for future in both]
    with socket.create_server(("127.0.0.1", port)):  # while the connections are open
        pass
    for lifeline in lifelines:
        lifeline.close()


def test_all_hear_what_is_wrong_with_one(port):
    found = meet(port, (0, "a"), (1, "b"), (2, "a"))
    assert [str(error) for error in found] == ["different: [1]"] * 3
    assert all(type(error) is ValueError for error in found)


def test_all_that_came_hear_who_did_not(port):
    found = meet(port, (0, "a"), (2, "a"), processes=4, timeout_s=0.5)
    assert all(isinstance(error, ProcessesMissing) for error in found)
    assert all(str(error).startswith("process 1, 3 of 4 did not come") for error in found)


def test_a_process_0_that_never_comes_is_named(port):
    (error,) = meet(port, (1, "a"), processes=2, timeout_s=0.5)
    assert isinstance(error, ProcessesMissing)
    assert f"process 0 did not answer at 127.0.0.1:{port}" in str(error)


def test_a_process_that_goes_away_while_others_are_waited_for_is_named(port):
    def goes():
        while True:
            try:
                with Connection(socket.create_connection(("127.0.0.1", port))) as connection:
                    connection.send(
                        {KEY: 2, "processes": 3, "host": "lost-host", "description": "a"}
                    )
                    return connection.receive(10)
            except ConnectionRefusedError:
                continue

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        killed = pool.submit(goes)
        (error,) = meet(port, (0, "a"), processes=3, timeout_s=60)  # and not after 60 s
        assert "heard" in killed.result()
    assert isinstance(error, ProcessesMissing)
    assert "process 2 of 3 on lost-host is gone" in str(error)


def test_a_process_0_that_goes_away_while_others_are_waited_for_is_named(port):
    with socket.create_server(("127.0.0.1", port)) as server:

        def goes():
            with Connection(server.accept()[0]) as connection:
                connection.receive(10)
                connection.send({"heard": "lost-host"})

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            killed = pool.submit(goes)
            (error,) = meet(port, (1, "a"), processes=2, timeout_s=60)
            killed.result()
    assert isinstance(error, ProcessesMissing)
    assert "process 0 on lost-host is gone" in str(error)


def test_two_processes_of_one_index_are_told(port):
    found = meet(port, (0, "a"), (1, "a"), (1, "a"), processes=3)
    told = [str(error) for error in found if type(error) is ValueError]
    assert len(told) == 3
    assert all("says that it is process 1 of 3" in text for text in told)


def test_a_stranger_at_the_port_is_ignored(port):
    def stranger():
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n\n")
                    return
            except ConnectionRefusedError:
                continue

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        came = pool.submit(stranger)
        first = pool.submit(meet, port, (0, "a"), processes=2)
        came.result()
        assert meet(port, (1, "a"), processes=2) == [None]
        assert first.result() == [None]


@pytest.mark.parametrize("coordinator", ["nowhere", "host:", ":80", "host:99999", "host:port"])
def test_a_coordinator_without_host_or_port_is_refused(coordinator):
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        call_roll(coordinator, 2, 1, description="", judge=str, timeout_s=1)

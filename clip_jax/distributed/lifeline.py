"""Connections of all processes with process 0, open as long as they live: who is gone shows at once.

JAX finds out after 100 s, by heartbeats, and then ends all others by a C++ abort. In the meantime
they wait for the lost one, in a barrier or in a collective.
"""

import contextlib
import ctypes
import logging
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable

from clip_jax.distributed.connection import Connection

log = logging.getLogger(__name__)

TICK_S = 0.5
ANSWER_S = 5.0  # for a process whose connection broke to show that it lives
RETRY_EXIT_CODE = 75  # as in preemption.py, which imports JAX

News = Callable[[str, int], None]


class Lifeline:
    """The connections of this process: process 0 has one with each, the others have one with it.

    Args:
      index: of this process.
      connections: by the index of the process at the other end.
      hosts: of those processes, for a person.
      coordinator: host and port of process 0.
    """

    def __init__(
        self,
        index: int,
        connections: dict[int, Connection],
        hosts: dict[int, str],
        coordinator: tuple[str, int],
    ):
        self.index, self._connections, self._hosts = index, connections, hosts
        self._coordinator = coordinator
        self._done: set[int] = set()  # processes that have said that they are done
        self._lock = threading.Lock()
        self._closed = False
        self._on_news: News | None = None
        self._news: tuple[str, int] | None = None  # the first
        # Set once the processes have JAX's store: the network may break where no process does.
        self.say_alive: Callable[[], None] | None = None
        self.is_alive: Callable[[int], bool] | None = None
        self._keep: list = []

    def watch(self, on_news: News):
        """Call `on_news(text, exit code)` from a thread, once another process fails or is gone."""
        self._on_news = on_news
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def tell(self, text: str, code: int):
        """Say why this process leaves, and with which exit code; all others hear it."""
        self._send_to_all({"news": text, "code": code})

    def done(self):
        """From now on the end of this process is no loss."""
        self._send_to_all({"done": True})

    def close(self):
        """End all connections; nothing is heard from now on."""
        self._closed = True
        for connection in self._connections.values():
            connection.__exit__()

    def catch_abort(self):
        """Leave with the retry code when JAX aborts this process because process 0 is gone.

        JAX's client of the coordination service ends the process from a thread of C++, and calls no
        function of Python instead: jaxlib cannot convert the argument of its callback. So the
        signal that the abort sends is caught, also by C, as Python's own handlers would run too
        late. An abort of any other kind goes on.
        """
        if self.index == 0:
            return
        handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

        def on_abort(number: int):
            del number
            gone = self._is_gone(0)  # meanwhile the last words of process 0 arrive
            lost = (self._gone(0), RETRY_EXIT_CODE) if gone else None
            if (end := self._news or lost) is not None:
                os.write(2, f"{end[0]}\n".encode())
                os._exit(end[1])

        handler = handler_type(on_abort)
        self._keep.append(handler)  # else it would be freed
        with contextlib.suppress(OSError, AttributeError):
            set_handler = ctypes.CDLL(None).signal
            set_handler.argtypes, set_handler.restype = (
                [ctypes.c_int, handler_type],
                ctypes.c_void_p,
            )
            set_handler(signal.SIGABRT, handler)

    def _watch(self):
        try:
            self._listen()
        except (OSError, ValueError):
            if not self._closed:  # else this thread was about to read from one of them
                raise

    def _listen(self):
        with selectors.DefaultSelector() as selector:
            for index, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    connection, index = key.fileobj, key.data
                    assert isinstance(connection, Connection)
                    if not self._read(index, connection):
                        selector.unregister(connection)

    def _read(self, index: int, connection: Connection) -> bool:
        """Take what has come from a process; False at its end."""
        while True:
            if (content := connection.receive(ANSWER_S)) is None:
                break
            if content.get("done"):
                self._done.add(index)
            if "news" in content:
                self._done.add(index)  # it leaves now
                self._spread(str(content["news"]), int(content["code"]), besides=index)
            if not connection.has_line:
                return True
        if index not in self._done and not self._closed and self._is_gone(index):
            self._spread(self._gone(index), RETRY_EXIT_CODE, besides=index)
        return False

    def _spread(self, text: str, code: int, *, besides: int):
        self._news = self._news or (text, code)
        if self.index == 0:
            self._send_to_all({"news": text, "code": code}, besides=besides)
        if self._on_news is not None:
            self._on_news(text, code)

    def _is_gone(self, index: int) -> bool:
        """Whether a process whose connection has ended is gone, or the network alone broke."""
        if index != 0:
            return self.is_alive is None or not self.is_alive(index)
        time.sleep(TICK_S)  # the kernel closes the sockets of a process one after the other
        try:
            # JAX's service listens there as long as process 0 lives.
            with socket.create_connection(self._coordinator, timeout=ANSWER_S):
                pass
        except OSError:
            return True
        if self.say_alive is not None:
            self.say_alive()
        return False

    def _send_to_all(self, content: dict, besides: int | None = None):
        with self._lock:
            for index, connection in self._connections.items():
                if index != besides:
                    with contextlib.suppress(OSError):
                        connection.send(content)

    def _gone(self, index: int) -> str:
        return (
            f"another process is gone: {index} on {self._hosts[index]}, whose log may say why. Start "
            "all processes again; they resume"
        )

"""A connection that carries lines of JSON, between process 0 and one of the others."""

import contextlib
import json
import socket

MOST_BYTES = 4 << 20  # of a line; anything longer is not one of ours
# A connection without traffic is probed, so that no router forgets it, and the loss of a whole host
# shows after 70 s: before the 100 s after which JAX ends all processes.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4}


class Connection:
    """One end.

    Args:
      own: a connected socket.
    """

    def __init__(self, own: socket.socket):
        self._socket, self._rest = own, b""
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            # macOS lacks the first; a pair of sockets in one process has none.
            if hasattr(socket, name) and own.family != socket.AF_UNIX:
                own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exc):
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, content: dict):
        """Raises OSError where the other end is gone."""
        self._socket.sendall(json.dumps(content).encode() + b"\n")

    def receive(self, timeout_s: float) -> dict | None:
        """The next line, or None: the other end is gone, silent, or none of ours."""
        self._socket.settimeout(max(0.01, timeout_s))
        try:
            while b"\n" not in self._rest:
                part = self._socket.recv(1 << 16)
                if not part or len(self._rest) + len(part) > MOST_BYTES:
                    return None
                self._rest += part
            line, _, self._rest = self._rest.partition(b"\n")
            content = json.loads(line)
        except (OSError, ValueError):
            return None
        finally:
            with contextlib.suppress(OSError):
                self._socket.settimeout(None)
        return content if isinstance(content, dict) else None

    @property
    def has_line(self) -> bool:
        """Whether a line has arrived that `receive` has not given yet."""
        return b"\n" in self._rest

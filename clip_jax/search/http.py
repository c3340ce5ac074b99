"""Runs the search app with uvicorn, with limits on how many connect and how slow they may be."""

import asyncio
import contextlib
import ctypes
import socket
from collections.abc import Callable

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 30.0  # for all of a request to come
ANSWER_S = 120.0  # from a request's beginning to the end of its answer
CONNECTIONS = 256
HEADER_BYTES = 16 * 2**10
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of malloc.h
LARGE_BLOCK = (
    32 * 2**20
)  # bytes: pictures and bodies, not the temporaries of a model on a few texts
KEPT = 64 * 2**20  # bytes of free memory between two returns
RETURN_S = 10.0


class LimitedProtocol(H11Protocol):
    """Closes a connection whose request or answer takes too long, and those above a number.

    uvicorn itself waits for ever for a header that comes byte by byte.
    """

    request_s, answer_s, most_connections = REQUEST_S, ANSWER_S, CONNECTIONS

    def connection_made(self, transport):
        if len(self.connections) >= self.most_connections:
            transport.abort()
            return
        super().connection_made(transport)
        # asyncio does so for sockets that name their protocol, and `create_server`'s do not: the body
        # of an answer, sent after its head, would wait some 40 ms for the head to be acknowledged.
        with contextlib.suppress(OSError, AttributeError):  # a client that has gone; a Unix socket
            bound = transport.get_extra_info("socket")
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._began: float | None = self.loop.time()
        self._check = self.loop.call_later(1.0, self._watch)

    def connection_lost(self, exc):
        if hasattr(self, "_check"):
            self._check.cancel()
            super().connection_lost(exc)

    def data_received(self, data: bytes):
        if self._began is None:
            self._began = self.loop.time()
        super().data_received(data)

    def _watch(self):
        came = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        answered = self.cycle is not None and self.cycle.response_complete
        if answered and self.conn.their_state is h11.IDLE:
            self._began = None  # between two requests, where uvicorn counts the time
        if self._began is not None:
            limit = self.answer_s if came else self.request_s
            if self.loop.time() - self._began > limit:
                self.transport.abort()
                return
        self._check = self.loop.call_later(1.0, self._watch)


def make_server(app: Starlette) -> uvicorn.Server:
    """A server with the limits of this module. It ends when `should_exit` is set."""
    config = uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        loop="asyncio",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def limit_memory():
    """Keep glibc from holding more memory the longer a server runs. Call it before threads start.

    glibc raises its limit for blocks of their own with each that is freed, and the bodies and pictures of
    many threads leave holes in the arenas that it makes for these: 10,000 requests took a server from 469
    to 1,382 MB. With fewer arenas, a limit that stays, and what is free returned now and then by
    `return_memory`, a model's temporaries are still memory that was used before: as fresh pages they
    more than double its time.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has other ways
        set_option = ctypes.CDLL(None).mallopt
        for option, value in (
            (M_ARENA_MAX, 2),
            (M_MMAP_THRESHOLD, LARGE_BLOCK),
            (M_TRIM_THRESHOLD, KEPT),
        ):
            set_option(option, value)


def return_memory():
    """Give the pages of free memory, also between what is in use, back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def _return_often(server: uvicorn.Server):
    """Return memory every few seconds, if there were requests."""
    before = 0
    while True:
        await asyncio.sleep(RETURN_S)
        if server.server_state.total_requests != before:
            before = server.server_state.total_requests
            await asyncio.to_thread(return_memory)


def serve(
    server: uvicorn.Server, bound: socket.socket, *, started: Callable[[], None] | None = None
):
    """Answer requests that come to a bound socket, until the process is told to end."""

    async def run():
        task = asyncio.create_task(server.serve([bound]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        if started is not None and server.started:
            started()
        returning = asyncio.create_task(_return_often(server))
        try:
            await task
        finally:
            returning.cancel()

    asyncio.run(run())

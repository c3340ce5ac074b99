"""A web server of files that adds latency to each request and limits the bandwidth of a connection.

    python benchmarks/slow_server.py FOLDER --latency 0.05 --bandwidth 50e6

prints its port, then serves ranges. GET /counts gives the requests and bytes so far as JSON.
"""

import argparse
import http.server
import json
import os
import threading
import time
from pathlib import Path

COUNTS = {"requests": 0, "bytes": 0}
PIECE = 1 << 18  # bytes that are sent between two looks at the clock


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    latency: float
    bandwidth: float
    lock = threading.Lock()

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body: bool = True):
        if self.path == "/counts":
            return self._send(200, json.dumps(COUNTS).encode())
        time.sleep(self.latency)
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self._count(0)
            return self._send(404, b"")
        size = path.stat().st_size
        span = self.headers.get("Range")
        first, _, last = (span or f"bytes=0-{size - 1}").removeprefix("bytes=").partition("-")
        first, last = int(first), min(int(last or size - 1), size - 1)
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self._count(last + 1 - first if body else 0)
        if body:
            self._stream(path, first, last + 1)

    def _stream(self, path: Path, place: int, end: int):
        self.wfile.flush()
        start, sent = time.monotonic(), 0
        with path.open("rb") as file:
            while place < end:
                done = os.sendfile(
                    self.connection.fileno(), file.fileno(), place, min(PIECE, end - place)
                )
                place, sent = place + done, sent + done
                early_s = start + sent / self.bandwidth - time.monotonic()
                if early_s > 0:
                    time.sleep(early_s)

    def _send(self, status: int, content: bytes):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _count(self, size: int):
        with self.lock:
            COUNTS["requests"] += 1
            COUNTS["bytes"] += size


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--bandwidth", type=float, default=50e6, help="bytes/s of a connection")
    args = parser.parse_args()
    Handler.folder, Handler.latency, Handler.bandwidth = args.folder, args.latency, args.bandwidth
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

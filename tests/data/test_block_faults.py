"""What a server does wrong is repeated or named by its file, and never becomes a wrong sample."""

import contextlib
import functools
import hashlib
import http.server
import json
import threading
import time

import pytest

from clip_jax import storage
from clip_jax.data import block_order
from clip_jax.data.loader import train_batches
from clip_jax.data.sources.registry import open_source
from clip_jax.storage import ranges


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves ranges with an ETag; every fourth answer to a range (or each) is at fault in the way of `fault`."""

    protocol_version = "HTTP/1.1"
    fault, count, tag, each = None, 0, "1", 4

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            return self._send(404, b"")
        span = self.headers.get("Range")
        if span is None:
            return self._send(200, data)
        Server.count += 1
        fault = self.fault if Server.count % self.each == 0 else None
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        part, total = data[first : last + 1], len(data)
        if fault in (503, 401):
            return self._send(fault, b"no")
        if fault == "stall":
            time.sleep(1)
        if fault == "short":
            part = part[: len(part) // 2]
        if fault == "cut":
            self.close_connection = True
        shown = first + 512 if fault == "other" else first
        self._send(206, part, f"bytes {shown}-{shown + len(part) - 1}/{total}", cut=fault == "cut")

    def do_HEAD(self):
        self.do_GET()

    def _send(self, status, content, span=None, *, cut=False):
        self.send_response(status)
        if span:
            self.send_header("Content-Range", span)
        self.send_header("ETag", self.tag)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError):  # who asked did not wait
                self.wfile.write(content[: len(content) // 2] if cut else content)


@pytest.fixture
def url(shards, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01,) * 5)
    monkeypatch.setattr(block_order, "BLOCK_BYTES", (6_000, 6_000))
    monkeypatch.setattr(Server, "fault", None)
    monkeypatch.setattr(Server, "tag", "1")
    sizes = {f"{shard:05d}.tar": 10 for shard in range(3)}
    (shards / "sizes.json").write_text(json.dumps(sizes))
    handler = functools.partial(Server, directory=str(shards))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{{00000..00002}}.tar"
    server.shutdown()
    server.server_close()


def read(url, reading, settings, steps=4, **changes):
    cfg = settings(batch_size=10, **changes)
    source = open_source(f"tar:{url}", "train", cfg)
    with train_batches(source, cfg=cfg, seed=0, **reading) as batches:
        found = [next(batches) for _ in range(steps)]
        assert batches.bad_samples.bad == 0
    return [hashlib.sha256(b["image"].tobytes() + b["tokens"].tobytes()).hexdigest() for b in found]


@pytest.mark.parametrize("index", ["never", "always"])
def test_faults_that_pass_change_nothing(url, reading, settings, monkeypatch, index):
    expected = read(url, reading, settings, index=index)
    for fault in (503, 401, "short", "cut", "stall") if index == "never" else (503, "short"):
        check_fault(url, reading, settings, monkeypatch, fault, index, expected)


def check_fault(url, reading, settings, monkeypatch, fault, index, expected):
    monkeypatch.setattr(Server, "fault", fault)
    if fault == "stall":
        monkeypatch.setattr(ranges, "STALLED_S", (0.5, 1e6))
    assert read(url, reading, settings, index=index) == expected


def test_an_answer_of_another_place_is_refused(url, reading, settings, monkeypatch):
    open_source(f"tar:{url}", "train", settings())
    monkeypatch.setattr(Server, "fault", "other")
    with pytest.raises(ValueError, match=r"0000\d\.tar: the server does not send ranges of bytes"):
        read(url, reading, settings)


@pytest.mark.parametrize("index", ["never", "always"])
@pytest.mark.parametrize("change", ["length", "version"])
def test_a_shard_that_changes_in_mid_epoch_stops_the_run_by_its_name(
    url, reading, settings, monkeypatch, shards, change, index
):
    cfg = settings(batch_size=10, index=index)
    source = open_source(f"tar:{url}", "train", cfg)
    with train_batches(source, cfg=cfg, seed=0, **reading) as batches:
        if change == "length":
            path = shards / "00001.tar"
            path.write_bytes(path.read_bytes() + bytes(512))
        else:
            monkeypatch.setattr(Server, "tag", "2")
        with pytest.raises(storage.Changed, match=r"0000\d\.tar has changed while it was in use"):
            for _ in range(6):
                next(batches)


def test_a_shard_of_a_bucket_that_shrinks_is_named(tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(bytes(1000))
    (info,) = storage.stat([f"file://{path}"])
    path.write_bytes(bytes(900))
    with pytest.raises(storage.Changed, match=r"0\.tar has changed"):
        storage.read_range(f"file://{path}", 500, 1000, info=info)


def test_a_server_that_only_fails_is_named(url, reading, settings, monkeypatch):
    cfg = settings(batch_size=10)
    source = open_source(f"tar:{url}", "train", cfg)
    monkeypatch.setattr(Server, "fault", 503)
    monkeypatch.setattr(Server, "each", 1)
    with (
        train_batches(source, cfg=cfg, seed=0, **reading) as batches,
        pytest.raises(OSError, match=r"0000\d\.tar cannot be read, after 6 tries.*503"),
    ):
        next(batches)

"""Shards in buckets and behind web servers: the same samples as on a disk, or a refusal."""

import contextlib
import functools
import http.server
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax import storage
from clip_jax.data.sources.registry import open_source


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def memory(shards):
    """The shards in fsspec's file system in memory, which stands for a bucket."""
    filesystem = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        filesystem.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


@pytest.mark.parametrize("pattern", ["*.tar", "{00000..00002}.tar"])
def test_shards_in_a_bucket_are_read_as_those_on_a_disk(memory, shards, settings, pattern):
    there = open_source(f"tar:{memory}/{pattern}", "train", settings())
    here = open_source(f"tar:{shards}/{pattern}", "train", settings())
    assert [there[index] for index in range(30)] == [here[index] for index in range(30)]


def test_a_stale_index_of_a_bucket_is_refused(memory, settings, shards):
    open_source(f"tar:{memory}/*.tar", "train", settings())
    data = (shards / "00000.tar").read_bytes()
    fsspec.filesystem("memory").pipe_file("/bucket/00000.tar", data + bytes(512))
    with pytest.raises(ValueError, match=r"stale.*00000\.tar"):
        open_source(f"tar:{memory}/*.tar", "train", settings())


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves ranges, and fails the first time that one is asked for."""

    count = 0

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        Flaky.count += 1
        asked = self.server.__dict__.setdefault("asked", set())
        if (request := (self.path, self.headers.get("Range"))) not in asked:
            asked.add(request)
            return self.send_error(503)
        path = self.translate_path(self.path)
        with open(path, "rb") as file:
            data = file.read()
        span = self.headers.get("Range")
        if span is None:
            self.send_response(200)
        else:
            first, last = span.removeprefix("bytes=").split("-")
            total, data = len(data), data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serve(handler, folder):
    """The URL of a server of a folder."""
    handler = functools.partial(handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_ranges_over_http_survive_a_server_that_fails_now_and_then(shards, settings):
    with serve(Flaky, shards) as url:
        source = open_source(f"tar:{url}/{{00000..00002}}.tar", "train", settings())
        assert [source[index].captions[0] for index in (3, 29, 11)] == [
            "text 3",
            "text 29",
            "text 11",
        ]
        assert Flaky.count > 6


class Liar(Flaky):
    """Answers a range as `how` says."""

    how = "the whole file"

    def do_GET(self):
        with open(self.translate_path(self.path), "rb") as file:
            data = file.read()
        first, _, last = (self.headers.get("Range") or f"bytes=0-{len(data)}")[6:].partition("-")
        total, part = len(data), data[int(first) : int(last) + 1]
        if self.how == "less than was asked for":
            part = part[:-7]
        status, span = {
            "the whole file": (200, None),
            "its beginning, as if it were the range": (206, f"bytes 0-{len(part) - 1}/{total}"),
            "no Content-Range": (206, None),
            "less than was asked for": (206, f"bytes {first}-{int(first) + len(part) - 1}/{total}"),
            "less than it says": (206, f"bytes {first}-{int(first) + len(part)}/{total + 99}"),
        }[self.how]
        self.send_response(status)
        if span:
            self.send_header("Content-Range", span)
        body = data if status == 200 else part
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def url(shards):
    """Where a `Liar` serves the shards."""
    with serve(Liar, shards) as url:
        yield url


@pytest.mark.parametrize(
    "how", ["the whole file", "its beginning, as if it were the range", "no Content-Range"]
)
def test_a_server_without_ranges_is_refused(url, settings, monkeypatch, how):
    monkeypatch.setattr(Liar, "how", how)
    with pytest.raises(ValueError, match=r"00001\.tar: the server does not send ranges of bytes"):
        storage.read_range(f"{url}/00001.tar", 512, 1024)
    if how == "the whole file":
        with pytest.raises(ValueError, match="the server does not send ranges of bytes"):
            open_source(f"tar:{url}/00001.tar", "train", settings())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("less than it says", "512 bytes came of 513"),
        ("less than was asked for", "505 bytes came of 512"),
    ],
)
def test_an_answer_that_is_too_short_is_asked_for_again_and_named(url, monkeypatch, how, said):
    monkeypatch.setattr(Liar, "how", how)
    with pytest.raises(OSError, match=rf"cannot be read, after 3 tries.*{said}"):
        storage.read_range(f"{url}/00001.tar", 512, 1024)


def test_a_file_system_that_ignores_ranges_is_refused(shards, monkeypatch):
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/lazy/0.tar", bytes(2048))
    whole = type(filesystem).cat_file
    monkeypatch.setattr(type(filesystem), "cat_file", lambda self, path, start=None, end=None: whole(self, path))  # fmt: skip
    with pytest.raises(storage.NoRanges, match=r"0\.tar: the server does not send ranges"):
        storage.read_range("memory://lazy/0.tar", 512, 1024)


@pytest.fixture
def table(shards):
    images = [bytes([number]) * 1000 for number in range(30)]
    kinds = pa.table({"image": images, "caption": [f"text {number}" for number in range(30)]})
    pq.write_table(kinds, shards / "p.parquet", row_group_size=10)
    return "p.parquet"


def test_tables_behind_a_web_server_are_read_as_those_on_a_disk(shards, table, settings):
    with serve(Flaky, shards) as url:
        there = open_source(f"parquet:{url}/{table}", "train", settings())
        here = open_source(f"parquet:{shards}/{table}", "train", settings())
        assert [there[index] for index in range(30)] == [here[index] for index in range(30)]


@pytest.mark.parametrize("how", ["the whole file", "its beginning, as if it were the range"])
def test_tables_of_a_server_without_ranges_are_refused(url, table, settings, monkeypatch, how):
    monkeypatch.setattr(Liar, "how", how)
    with pytest.raises(ValueError, match=r"p\.parquet: the server does not send ranges of bytes"):
        open_source(f"parquet:{url}/{table}", "train", settings())


def test_tables_whose_server_goes_away_are_no_damage(shards, table, settings):
    with serve(Flaky, shards) as url:
        source = open_source(f"parquet:{url}/{table}", "train", settings())
    with pytest.raises(storage.Failed, match=r"p\.parquet cannot be read, after 3 tries"):
        source[0]


class Streams(Flaky):
    """Does not say how long a file is; or that nobody may have it."""

    forbids = False

    def do_GET(self):
        if self.forbids:
            return self.send_error(403)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(2048))

    do_HEAD = do_GET


def test_a_list_that_a_server_forbids_is_not_said_to_be_missing(shards, settings, monkeypatch):
    monkeypatch.setattr(Streams, "forbids", True)
    with serve(Streams, shards) as url, pytest.raises(storage.Refused, match=r"l\.csv .*403"):
        open_source(f"pairs:{url}/l.csv", "train", settings())


@pytest.mark.parametrize("source", ["tar:{}/00000.tar", "parquet:{}/p.parquet"])
@pytest.mark.parametrize(
    ("forbids", "error", "message"),
    [
        (False, ValueError, "or not the length of the file"),
        (True, storage.Refused, "after 1 tries .*403"),
    ],
)
def test_servers_that_do_not_say_a_length_or_forbid_it_are_named(
    shards, settings, monkeypatch, source, forbids, error, message
):
    monkeypatch.setattr(Streams, "forbids", forbids)
    with serve(Streams, shards) as url, pytest.raises(error, match=message):
        open_source(source.format(url), "train", settings())


class Unwilling(Flaky):
    """Says what a file is, and answers every other request as `how` says."""

    how = ""

    def do_GET(self):
        status = {"circle": 302, "no ranges": 416, "gone": 404, "gone for good": 410}[self.how]
        self.send_response(status)
        self.send_header("Location", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Unreachable(Unwilling):
    """Answers no request at all otherwise."""

    def do_HEAD(self):
        self.do_GET()


FINAL = {
    "circle": (storage.Refused, "after 1 tries.*: its server redirects in a circle"),
    "no ranges": (storage.NoRanges, "does not send ranges of bytes.*answers 416 for byte 0 of"),
    "gone": (FileNotFoundError, "after 1 tries"),
    "gone for good": (storage.Refused, "after 1 tries.*410"),
}


@pytest.mark.parametrize("source", ["tar:{}/00000.tar", "parquet:{}/p.parquet"])
@pytest.mark.parametrize("how", FINAL)
def test_an_answer_that_cannot_change_is_refused_once_by_its_cause(
    shards, table, settings, monkeypatch, caplog, source, how
):
    monkeypatch.setattr(Unwilling, "how", how)
    error, message = FINAL[how]
    with serve(Unwilling, shards) as url, pytest.raises(error, match=message):
        open_source(source.format(url), "train", settings())
    assert "trying again" not in caplog.text


@pytest.mark.parametrize("source", ["tar:{}/0.tar", "parquet:{}/0.parquet", "pairs:{}/0.csv"])
def test_a_circle_of_redirects_is_named_before_anything_is_read(
    shards, settings, monkeypatch, caplog, source
):
    monkeypatch.setattr(Unreachable, "how", "circle")
    with serve(Unreachable, shards) as url, pytest.raises(storage.Refused, match="in a circle"):
        open_source(source.format(url), "train", settings())
    assert "trying again" not in caplog.text


def test_a_range_behind_the_end_of_a_file_is_empty(shards):
    class Ends(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            self.send_error(416)

    size = (shards / "00001.tar").stat().st_size
    with serve(Ends, shards) as url:
        assert storage.read_range(f"{url}/00001.tar", size, size + 512) == b""
        with pytest.raises(storage.NoRanges, match=f"416 for byte {size - 1} of {size}"):
            storage.read_range(f"{url}/00001.tar", size - 1, size + 512)


class Stalls(Flaky):
    """Takes a request and does not answer it."""

    def do_HEAD(self):
        self.server.__dict__.setdefault("tried", []).append(self.path)
        self.server.__dict__.setdefault("ends", threading.Event()).wait(5)
        self.close_connection = True

    do_GET = do_HEAD


def test_a_server_that_does_not_answer_is_asked_again_and_named(shards, monkeypatch):
    monkeypatch.setattr(storage.ranges, "ASKED_S", 0.2)
    monkeypatch.setattr(storage.ranges, "STALLED_S", (0.2, 1e6))
    message = r"after 3 tries in \d+ s: the server does not answer in time"
    with serve(Stalls, shards) as url:
        with pytest.raises(storage.Failed, match=message):
            storage.stat([f"{url}/00001.tar"])
        with pytest.raises(storage.Failed, match=message):
            storage.read_whole(f"{url}/00001.tar")

"""Patterns, ranges and retries, on disk and by URL."""

import functools
import http.server
import threading

import fsspec
import pytest

from clip_jax import storage
from clip_jax.data.sources.registry import open_source


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))


def test_braces_and_wildcards_name_files_in_order(tmp_path):
    for name in ("a1", "a2", "b1", "c"):
        (tmp_path / name).touch()
    names = [path.rpartition("/")[2] for path in storage.expand(f"{tmp_path}/{{b,a}}*")]
    assert names == ["b1", "a1", "a2"]
    assert storage.expand(f"{tmp_path}/a{{2..1}}") == [f"{tmp_path}/a2", f"{tmp_path}/a1"]


def test_a_range_past_the_end_is_short(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    assert storage.read_range(str(tmp_path / "f"), 4, 7) == b"456"
    assert storage.read_range(str(tmp_path / "f"), 8, 20) == b"89"
    assert storage.read_range(str(tmp_path / "f"), 20, 30) == b""


def test_no_more_than_the_set_number_of_files_stays_open(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "OPEN_FILES", 3)
    files = storage._Files()
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]))
        opened = files.get(str(tmp_path / str(number)))
        assert storage._pread(opened, 0, 9) == bytes([number])
    assert len(files._files) == 3


def test_a_failure_that_passes_is_not_seen(tmp_path):
    failures = iter([OSError("stale handle"), TimeoutError("slow")])

    def read():
        error = next(failures, None)
        if error is not None:
            raise error
        return b"data"

    assert storage.retry(read, "f") == b"data"


def test_a_failure_that_stays_is_named_with_its_reason():
    def read():
        raise ConnectionError("reset by peer")

    with pytest.raises(
        OSError, match=r"s3://b/0\.tar cannot be read, after 3 tries.*reset by peer"
    ):
        storage.retry(read, "s3://b/0.tar")


def test_mistakes_are_not_tried_again():
    tries = []

    def read():
        tries.append(1)
        raise ValueError("no such bucket name")

    with pytest.raises(ValueError, match="no such bucket"):
        storage.retry(read, "f")
    assert len(tries) == 1


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
    """Serves ranges, and fails on every third request."""

    count = 0

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        Flaky.count += 1
        if Flaky.count % 3 == 0:
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


def test_ranges_over_http_survive_a_server_that_fails_now_and_then(shards, settings):
    handler = functools.partial(Flaky, directory=str(shards))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        source = open_source(f"tar:{url}/{{00000..00002}}.tar", "train", settings())
        assert [source[index].captions[0] for index in (3, 29, 11)] == [
            "text 3",
            "text 29",
            "text 11",
        ]
        assert Flaky.count > 6
    finally:
        server.shutdown()
        server.server_close()

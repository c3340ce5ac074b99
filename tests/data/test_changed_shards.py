"""A shard that is overwritten by one of the same length is noticed wherever it lies."""

import http.server
import json
import os
import threading
import urllib.parse
from typing import ClassVar

import fsspec
import gcsfs
import pytest

from clip_jax import storage
from clip_jax.data.sources.registry import open_source
from clip_jax.storage import ranges


class Bucket(http.server.BaseHTTPRequestHandler):
    """Google's storage as far as reading objects by their generation goes."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, tuple[int, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        Bucket.asked.append(self.path)
        head, _, name = url.path.partition("/o/")
        name = urllib.parse.unquote(name)
        if not name:
            items = (
                [self._meta(each) for each in sorted(self.objects)] if head.endswith("/o") else []
            )
            return self._send(200, json.dumps({"items": items}).encode())
        generation, data = self.objects.get(name, (0, b""))
        if not generation or query.get("generation", [str(generation)]) != [str(generation)]:
            return self._send(404, b"{}")
        if query.get("alt") != ["media"]:
            return self._send(200, json.dumps(self._meta(name)).encode())
        first, last = self.headers.get("Range", f"bytes=0-{len(data)}").removeprefix("bytes=").split("-")  # fmt: skip
        self._send(206, data[int(first) : int(last) + 1])

    def _meta(self, name):
        generation, data = self.objects[name]
        when = f"2026-01-01T00:00:0{generation}.000Z"
        return {"name": name, "size": str(len(data)), "updated": when, "timeCreated": when, "generation": str(generation), "bucket": "b"}  # fmt: skip

    def _send(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def google(shards, monkeypatch):
    """Three shards of gs://b with their counts."""
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01,))
    objects = {path.name: (1, path.read_bytes()) for path in shards.glob("*.tar")}
    sizes = json.dumps(dict.fromkeys(objects, 10)).encode()
    monkeypatch.setattr(Bucket, "objects", objects | {"sizes.json": (1, sizes)})
    monkeypatch.setattr(Bucket, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    gcsfs.GCSFileSystem.clear_instance_cache()
    yield Bucket
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def overwrite(google, name):
    generation, data = google.objects[name]
    google.objects[name] = (generation + 1, bytes(len(data)))


def test_google_is_asked_by_the_generation_that_is_known(google, settings):
    source = open_source("tar:gs://b/*.tar", "train", settings(index="never"))
    span = source.span(10, 11)
    assert len(storage.read_range(*span[:3], info=span.info)) == span.end
    assert "generation=1" in google.asked[-1] and "alt=media" in google.asked[-1]
    before = len(google.asked)
    storage.read_range(*span[:3], info=span.info)
    assert len(google.asked) == before + 1
    overwrite(google, "00001.tar")
    with pytest.raises(storage.Changed, match=r"00001\.tar has changed while it was in use"):
        storage.read_range(*span[:3], info=span.info)


def test_what_changed_in_google_before_its_first_read_is_noticed_too(google, settings):
    source = open_source("tar:gs://b/*.tar", "train", settings(index="never"))
    overwrite(google, "00002.tar")
    span = source.span(20, 21)
    with pytest.raises(storage.Changed, match=r"00002\.tar has changed while it was in use"):
        storage.read_range(*span[:3], info=span.info)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_that_is_overwritten_by_one_of_its_length_is_noticed(tmp_path, scheme):
    path = tmp_path / "0.tar"
    path.write_bytes(bytes(1000))
    (info,) = storage.stat([f"{scheme}{path}"])
    assert len(storage.read_range(f"{scheme}{path}", 0, 500, info=info)) == 500
    path.write_bytes(b"x" * 1000)
    os.utime(path, ns=(1, 1))
    with pytest.raises(storage.Changed, match=r"0\.tar has changed"):
        storage.read_range(f"{scheme}{path}", 0, 500, info=info)


class Dated(http.server.BaseHTTPRequestHandler):
    """A web server that tells versions by dates alone."""

    date = "Thu, 01 Jan 2026 00:00:00 GMT"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.send_header("Content-Range", "bytes 0-9/100")
        self.send_header("Last-Modified", self.date)
        self.send_header("Content-Length", "10" if "Range" in self.headers else "100")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(bytes(10))


def test_a_web_server_without_tags_is_held_to_its_dates(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01,))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/0.tar"
    (info,) = storage.stat([url])
    assert storage.read_range(url, 0, 10, info=info) == bytes(10)
    monkeypatch.setattr(Dated, "date", "Fri, 02 Jan 2026 00:00:00 GMT")
    with pytest.raises(storage.Changed, match=r"0\.tar has changed"):
        storage.read_range(url, 0, 10, info=info)
    server.shutdown()
    server.server_close()


def test_a_listing_of_the_client_does_not_hide_a_change(google):
    url = "gs://b/00000.tar"
    fsspec.core.url_to_fs(url)[0].ls("b", detail=True)  # which gcsfs remembers
    overwrite(google, "00000.tar")
    assert storage.stat([url])[0].version.startswith("2026-01-01 00:00:02")


def test_a_time_that_a_listing_says_more_exactly_is_the_same():
    listed, asked = "2026-01-01 00:00:01.123000+00:00", "2026-01-01 00:00:01+00:00"
    was, now = ranges.FileInfo(5, listed), ranges.FileInfo(5, asked)
    ranges.refuse_changed("s3://b/0.tar", was, now)
    with pytest.raises(ranges.Changed):
        ranges.refuse_changed(
            "s3://b/0.tar", was, now._replace(version=asked.replace(":01", ":02"))
        )

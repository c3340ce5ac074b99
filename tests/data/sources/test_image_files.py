"""What is wrong with one file costs one sample; what is wrong with a storage stops the run."""

import errno
import http.server
import os
import threading

import pytest

from clip_jax import storage
from clip_jax.data.samples import BadSample
from clip_jax.data.sources.image_files import read_image


@pytest.fixture
def server(monkeypatch):
    """The address of a server that answers /200 with 200 and so on, and what it was asked for."""
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01, 0.01))
    asked = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            asked.append(self.path)
            self.send_response(int(self.path[1:]))
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"data")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(404, "missing-file"), (403, "unreadable-file"), (401, "unreadable-file"), (410, "unreadable-file")],
)  # fmt: skip
def test_an_answer_about_one_url_is_a_bad_sample_at_once(server, answer, reason):
    url, asked = server
    assert read_image(f"{url}/200", key="k", shard="s") == b"data"
    with pytest.raises(BadSample) as caught:
        read_image(f"{url}/{answer}", key="k", shard="s")
    assert (caught.value.reason, caught.value.key, caught.value.shard) == (reason, "k", "s")
    assert asked.count(f"/{answer}") == 1


@pytest.mark.parametrize("answer", [503, 429])
def test_a_server_that_is_out_of_order_is_asked_again_and_then_a_bad_sample(server, answer):
    url, asked = server
    with pytest.raises(BadSample, match="no-answer"):
        read_image(f"{url}/{answer}", key="k", shard="s")
    assert asked.count(f"/{answer}") == 3
    with pytest.raises(BadSample, match="no-answer"):
        read_image(f"{url}/{answer}", key="k", shard="s")
    assert asked.count(f"/{answer}") == 4  # it costs no more waiting
    assert read_image(f"{url}/200", key="k", shard="s") == b"data"


def test_a_host_that_is_gone_is_a_bad_sample(monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0.01,))
    for url in ("http://127.0.0.1:9/x", "http://no-such-host.invalid/x.jpg"):
        with pytest.raises(BadSample, match="no-answer"):
            read_image(url, key="k", shard="s")


def test_a_bucket_that_does_not_answer_stops_the_run(monkeypatch):
    def fail(url, *, patient=True):
        raise OSError("no route to host")

    monkeypatch.setattr(storage, "read_whole", fail)
    with pytest.raises(OSError, match="no route"):
        read_image("gs://bucket/x.jpg", key="k", shard="s")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_the_system_does_not_give_out_is_a_bad_sample(monkeypatch, number):
    def fail(path, flags):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(BadSample, match="unreadable-file"):
        read_image("a.jpg", key="k", shard="s")


def test_too_many_open_files_are_no_fault_of_the_file(monkeypatch):
    def fail(path, flags):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="too many open files"):
        read_image("a.jpg", key="k", shard="s")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(BadSample, match="not-a-file"):
            read_image(str(path), key="k", shard="s")

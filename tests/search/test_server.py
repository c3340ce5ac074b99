"""The server answers as the index does, only whom it may, and survives whoever asks for something else."""

import base64
import contextlib
import datetime
import http.client
import io
import json
import resource
import socket
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from clip_jax.cli.main import main
from clip_jax.search import http as search_http
from clip_jax.search.http import LimitedProtocol
from clip_jax.search.requests import printable


def ask(address, method, path, body=None, **headers):
    """Status, headers and body of the answer to one request."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def search(address, *parts, **rest):
    status, _, body = ask(address, "POST", "/api/search", json.dumps({"query": parts, **rest}))
    return status, json.loads(body)


def png(color, size=(8, 8)) -> str:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def colors(found) -> list[str]:
    return [row["shard"] for row in found["results"]]


def test_texts_pictures_rows_and_weights_find_what_they_are(address):
    assert colors(search(address, {"text": "a red thing"}, k=20)[1]) == ["red"] * 20
    assert set(colors(search(address, {"image": png((30, 190, 40))}, k=5)[1])) == {"green"}
    _, found = search(address, {"row": 3}, k=3)
    assert found["results"][0]["row"] == 3 and found["results"][0]["score"] == pytest.approx(
        1, abs=1e-4
    )
    both = ({"text": "red", "weight": 0.1}, {"image": png((40, 60, 230)), "weight": 1})
    assert set(colors(search(address, *both, k=5)[1])) == {"blue"}


def test_filters_are_satisfied_and_more_can_be_asked_for(address):
    where = [{"column": "label", "operator": "=", "value": 2}]
    _, found = search(address, {"text": "blue"}, k=10, where=where)
    assert [row["label"] for row in found["results"]] == [2] * 10
    _, every = search(address, {"text": "blue"}, k=200)
    assert sorted(row["row"] for row in every["results"]) == list(range(60))
    scores = [row["score"] for row in every["results"]]
    assert scores == sorted(scores, reverse=True)


def test_pictures_are_those_of_the_rows_encoded_again(address, shop):
    _, found = search(address, {"text": "green"}, k=1)
    row = found["results"][0]
    status, headers, body = ask(address, "GET", f"/api/picture/{row['row']}?size=320")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    pixels_HWC = np.asarray(Image.open(io.BytesIO(body)), float)
    expected_HWC = np.asarray(Image.open(row["image_path"]), float)
    assert np.abs(pixels_HWC.mean((0, 1)) - expected_HWC.mean((0, 1))).max() < 3


def test_info_says_what_there_is(address):
    info = json.loads(ask(address, "GET", "/api/info")[2])
    assert (info["rows"], info["kind"], info["method"], info["pictures"]) == (
        60,
        "image",
        "exact",
        True,
    )
    assert {"name": "label", "kind": "number"} in info["columns"]


def test_the_page_asks_for_nothing_outside_and_runs_no_other_script(address):
    status, headers, body = ask(address, "GET", "/")
    assert status == 200
    assert b"http://" not in body and b"https://" not in body and b"//cdn" not in body
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "sha256-" in policy


OUTSIDE = [
    "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/picture/../../../etc/passwd",
    "/api/picture/..%2f..%2fetc%2fpasswd", "/api/picture//etc/passwd", "/api/picture/-1",
    "/api/picture/60", "/api/picture/0?size=99999", "/api/picture/0?size=-1", "/api/picture/0x1",
    "/api/picture/%D9%A3", "/api/picture/1e1", "/api/picture/" + "9" * 400, "/api/picture/0%00.png",
    "/index.json", "/page.html", "/api/picture/file:%2f%2f%2fetc%2fpasswd", "/static/../server.py",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_of_the_list_is_served(address, path):
    status, _, body = ask(address, "GET", path)
    assert status in (400, 404, 405)
    assert b"root:" not in body and b"import" not in body


WRONG = [
    b"", b"{", b"null", b"[]", b'"query"', b"\xff\xfe", b"[" * 200_000, b'{"query": []}',
    b'{"query": [{}]}', b'{"query": [{"text": ""}]}', b'{"query": [{"text": 3}]}',
    b'{"query": [{"text": "a", "row": 1}]}', b'{"query": [{"text": "a"}], "k": 0}',
    b'{"query": [{"text": "a"}], "k": 1e9}', b'{"query": [{"text": "a"}], "k": true}',
    b'{"query": [{"text": "a", "weight": NaN}]}', b'{"query": [{"text": "a", "weight": 1e999}]}',
    b'{"query": [{"row": 60}]}', b'{"query": [{"row": -1}]}', b'{"query": [{"row": 1.5}]}',
    b'{"query": [{"row": ' + b"9" * 5000 + b"}]}", b'{"query": [{"image": "%%%"}]}',
    b'{"query": [{"image": "aGVsbG8="}]}', b'{"query": [{"path": "/etc/passwd"}]}',
    b'{"query": [{"text": "a"}], "where": [{"column": "gone", "operator": "=", "value": 1}]}',
    b'{"query": [{"text": "a"}], "where": [{"column": "label", "operator": "~", "value": 1}]}',
    b'{"query": [{"text": "a"}], "where": [{"column": "label", "operator": "=", "value": {}}]}',
    b'{"query": [{"text": "a"}], "where": "label=1"}', b'{"query": [{"text": "a"}], "extra": 1}',
    json.dumps({"query": [{"text": "a"}] * 17}).encode(),
    json.dumps({"query": [{"text": "a" * 2001}]}).encode(),
    json.dumps({"query": [{"row": 3}, {"row": 3, "weight": -1}]}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", WRONG, ids=lambda body: body[:40].decode("latin-1"))
def test_wrong_json_is_refused_in_words(address, body):
    status, _, answer = ask(address, "POST", "/api/search", body)
    assert status == 400 and json.loads(answer)["error"]


def bomb(side: int) -> str:
    """A PNG of a few kilobytes that says that it is side x side pixels."""
    rows = zlib.compress(b"\0" * (1 + side) * 64, 9)
    header = side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        data += len(content).to_bytes(4, "big") + kind + content
        data += zlib.crc32(kind + content).to_bytes(4, "big")
    return base64.b64encode(data).decode()


def test_bombs_and_broken_pictures_are_refused_within_little_memory(address):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = base64.b64decode(png((1, 2, 3), (64, 64)))
    broken = [
        whole[:60],
        whole[: len(whole) // 2],
        b"GIF89a" + bytes(100),
        b"%!PS-Adobe",
        b"<svg/>",
        bytes(10**6),
    ]
    pictures = [bomb(60_000), bomb(30_000), *(base64.b64encode(data).decode() for data in broken)]
    for picture in pictures:
        status, answer = search(address, {"image": picture})
        assert (status, answer["error"][:11]) == (400, "the picture"), answer
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_bodies_that_are_too_large_are_refused(address):
    headers = {"Content-Length": str(10**12)}
    host = urlsplit(address).netloc
    with socket.create_connection(host.split(":"), timeout=20) as wire:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        wire.sendall(f"POST /api/search HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
        assert b" 400 " in wire.recv(4096).split(b"\r\n")[0]
    with contextlib.suppress(ConnectionError):  # it may be closed while the body is being sent
        status, _, answer = ask(address, "POST", "/api/search", b" " * (12 * 2**20 + 1))
        assert status == 400 and b"at most" in answer
    assert search(address, {"row": 1}, k=1)[0] == 200


def test_other_methods_and_headers_that_are_too_large_are_refused(address):
    assert ask(address, "GET", "/api/search")[0] == 405
    assert ask(address, "DELETE", "/")[0] == 405
    wire = socket.create_connection(urlsplit(address).netloc.split(":"), timeout=20)
    with wire, contextlib.suppress(ConnectionError):
        wire.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000)
        assert wire.recv(100).split(b"\r\n")[0] == b"HTTP/1.1 400 Bad Request"


def test_free_memory_is_returned_after_requests_and_not_while_there_are_none(
    shop, start_server, monkeypatch
):
    returned = threading.Semaphore(0)
    monkeypatch.setattr(search_http, "RETURN_S", 0.05)
    monkeypatch.setattr(search_http, "return_memory", returned.release)
    with start_server(shop) as address:
        assert not returned.acquire(timeout=0.5)
        assert search(address, {"text": "red"}, k=1)[0] == 200
        assert returned.acquire(timeout=20)
        assert not returned.acquire(timeout=0.5)


def test_memory_of_many_threads_is_returned_to_the_system():
    """In a process of its own, as the limits hold for all of it."""
    code = """
import threading
from clip_jax.search.http import limit_memory, return_memory

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))

def work(kept):
    blocks = [bytes(b"x" * 2**20) for _ in range(8)]  # below LARGE_BLOCK: from the heap
    kept.append(bytes(10_000))  # behind them, so that the heap cannot shrink
    del blocks

limit_memory()
before, kept = resident(), []
for _ in range(4):
    threads = [threading.Thread(target=work, args=(kept,)) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
held = resident() - before
return_memory()
print(held, resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    held, left = map(float, done.stdout.split())
    assert held > 8
    assert left < 6


def test_slow_clients_are_closed_and_keep_nobody_waiting(shop, start_server, monkeypatch):
    monkeypatch.setattr(LimitedProtocol, "request_s", 1.0)
    monkeypatch.setattr(LimitedProtocol, "most_connections", 30)
    with start_server(shop) as address:
        host = urlsplit(address).netloc.split(":")
        starts = [
            b"",
            b"GET / HT",
            b"POST /api/search HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
        ]
        slow = [socket.create_connection(host, timeout=20) for _ in range(27)]
        for number, wire in enumerate(slow):
            wire.sendall(starts[number % 3])
        assert search(address, {"text": "red"}, k=1)[0] == 200
        for wire in slow:
            with wire, contextlib.suppress(ConnectionError):
                while wire.recv(4096):  # a time-out of the socket fails the test
                    pass
        # None of them is counted any longer.
        more = [socket.create_connection(host, timeout=20) for _ in range(25)]
        assert search(address, {"text": "red"}, k=1)[0] == 200
        for wire in more:
            wire.close()


def test_many_clients_at_once_get_their_own_results(address):
    def one(row):
        return search(address, {"row": row}, k=1)[1]["results"][0]["row"]

    with ThreadPoolExecutor(16) as pool:
        rows = list(range(60)) * 3
        assert list(pool.map(one, rows)) == rows


@pytest.mark.parametrize("way", ["header", "cookie", "query"])
def test_with_a_token_nobody_else_is_answered(way, shop, start_server):
    with start_server(shop, token="sesame", hosts=None) as address:
        paths = ("/", "/api/info", "/api/picture/1", "/api/search")
        assert {ask(address, "GET", path)[0] for path in paths} <= {401, 405}
        assert ask(address, "GET", "/api/info", Authorization="Bearer sesam")[0] == 401
        assert ask(address, "POST", "/api/search", b"{}", Cookie="clip_jax_token=x")[0] == 401
        if way == "header":
            assert ask(address, "GET", "/api/info", Authorization="Bearer sesame")[0] == 200
        elif way == "cookie":
            assert ask(address, "GET", "/api/info", Cookie="clip_jax_token=sesame")[0] == 200
        else:
            status, headers, _ = ask(address, "GET", "/?token=sesame")
            assert (status, headers["location"]) == (303, "/")
            assert "HttpOnly" in headers["set-cookie"] and "strict" in headers["set-cookie"].lower()


def test_a_token_that_no_cookie_can_hold_is_no_failure_of_the_server(address):
    status, headers, _ = ask(address, "GET", "/?token=%D0%BF%ff")
    assert status == 303 and "set-cookie" not in headers


@pytest.mark.parametrize(
    "options, named",
    [
        (["--port", "99999"], "port=99999 must be from 0 to 65535"),
        (["--token", "a&b"], "a token has letters"),
        (["--token", "\u043f"], "a token has letters"),
    ],
)
def test_what_the_server_cannot_be_is_refused(options, named, capsys):
    assert main(["serve", "index", *options]) == 2
    assert named in capsys.readouterr().err


def test_on_this_machine_other_names_are_refused(address):
    assert ask(address, "GET", "/api/info", Host="evil.example")[0] == 421
    assert ask(address, "GET", "/api/info", Host="localhost:1")[0] == 200


def test_metadata_of_any_kind_is_json():
    row = {"ratio": np.inf, "width": np.nan, "at": datetime.date(2020, 1, 2), "raw": b"\xff", "label": 3, "no": None}  # fmt: skip
    sent = {"ratio": "inf", "width": "nan", "at": "2020-01-02", "raw": "b'\\xff'", "label": 3, "no": None}  # fmt: skip
    assert json.loads(json.dumps(printable(row), allow_nan=False)) == sent


def test_the_body_of_an_answer_does_not_wait_for_its_head(shop, start_server, monkeypatch):
    """Nagle's algorithm holds it back until the client acknowledges the head, after 40 ms."""
    transports, made = [], LimitedProtocol.connection_made
    monkeypatch.setattr(
        LimitedProtocol,
        "connection_made",
        lambda self, transport: transports.append(transport) or made(self, transport),
    )
    with start_server(shop) as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/api/info")
            assert connection.getresponse().status == 200
            accepted = transports[0].get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

"""Send hostile requests to `clip-jax serve`: paths outside, broken and huge pictures, wrong JSON, slow clients.

    python benchmarks/hostile_requests.py INDEX --requests 10000

Starts the server on the index, as a user does, and prints what was answered, whether anything but the index's rows came out, and the
server's memory before and after.
"""

import argparse
import base64
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

MARK = b"not to be served 7d1f"


def bomb(side: int, draw: random.Random) -> bytes:
    """A small PNG that says that it is side x side pixels."""
    rows = zlib.compress(bytes(draw.randrange(1, 10) * 1000), 9)
    data = b"\x89PNG\r\n\x1a\n"
    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    for kind, content in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        data += len(content).to_bytes(4, "big") + kind + content
        data += zlib.crc32(kind + content).to_bytes(4, "big")
    return data


def path(draw: random.Random, secret: Path) -> bytes:
    ups = draw.choice(
        ["../", "..%2f", "%2e%2e/", "..\\", "....//", "%252e%252e%252f"]
    ) * draw.randrange(1, 9)
    start = draw.choice(["/", "/api/picture/", "/api/picture/0/", "/api/", "/static/"])
    end = draw.choice(
        ["etc/passwd", str(secret), str(secret)[1:], "index.json", "0%00.png", "9" * 40]
    )
    return f"GET {start}{ups}{end}".encode() + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def picture(draw: random.Random) -> bytes:
    kind = draw.randrange(4)
    data = bomb(draw.choice([6000, 20_000, 60_000, 2**30]), draw)
    if kind == 1:
        data = draw.randbytes(draw.randrange(1, 5000))
    if kind == 2:
        data = bytearray(data)
        for _ in range(5):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    if kind == 3:
        data = b"\xff\xd8\xff" + draw.randbytes(2000)
    image = base64.b64encode(bytes(data)).decode()
    return post(json.dumps({"query": [{"image": image}]}).encode())


def wrong_json(draw: random.Random) -> bytes:
    whole = json.dumps(
        {
            "query": [{"text": "red", "weight": 1}, {"row": 3}],
            "k": 5,
            "where": [{"column": "caption", "operator": "~", "value": "a"}],
        }
    )
    text = bytearray(whole.encode())
    for _ in range(draw.randrange(1, 6)):
        kind, at = draw.randrange(3), draw.randrange(len(text))
        if kind == 0:
            text[at] = draw.randrange(256)
        elif kind == 1:
            del text[at]
        else:
            text[at:at] = draw.choice(
                [b"[" * 2000, b"9" * 500, b"NaN", b"1e999", b"\xff", b'"', b"null", b"-"]
            )
    return post(bytes(text))


def broken_http(draw: random.Random) -> bytes:
    return draw.choice(
        [
            draw.randbytes(200),
            b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000 + b"\r\n\r\n",
            post(b"{}", 10**13),
            post(b"{}", -1),
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n{",
            b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ]
    )


def slow(draw: random.Random) -> bytes:
    """What ends in the middle; the client then waits for a second, and goes."""
    return draw.choice(
        [
            b"GET / HT",
            b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{",
            b"",
        ]
    )


def send(port: int, data: bytes, wait_s: float) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
            wire.settimeout(wait_s)
            wire.sendall(data)
            wire.shutdown(
                socket.SHUT_WR
            ) if wait_s > 2 and b"Content-Length: 1000" in data else None
            answer = b""
            while len(answer) < 10**6:
                part = wire.recv(65536)
                answer += part
                head, _, body = answer.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                if not part or (length and len(body) >= int(length[1])):
                    break
            return answer
    except TimeoutError:
        return b"(no answer)"
    except OSError:
        return b"(closed)"


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=16)
    args = parser.parse_args()
    secret = Path("/tmp/clip_jax_secret.txt")
    secret.write_bytes(MARK)
    command = [sys.executable, "-m", "clip_jax.cli", "serve", args.index, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = next(line for line in server.stdout if line.startswith("http"))
    port = int(re.search(r":(\d+)/", address)[1])
    good = post(json.dumps({"query": [{"row": 0}], "k": 3}).encode())
    assert b" 200 " in send(port, good, 30)
    before, kinds = resident_mb(server.pid), [path, picture, wrong_json, broken_http, slow]
    counts: Counter[str] = Counter()
    leaks: list[bytes] = []
    most, start, lock, left = (
        [before],
        time.monotonic(),
        threading.Lock(),
        iter(range(args.requests)),
    )

    def work(number: int):
        draw = random.Random(number)
        while True:
            with lock:
                if next(left, None) is None:
                    return
            kind = draw.choices(kinds, [30, 20, 30, 15, 5])[0]
            data = kind(draw, secret) if kind is path else kind(draw)
            answer = send(port, data, 1.0 if kind in (slow, broken_http) else 30.0)
            with lock:
                line = answer.split(b"\r\n")[0][:40].decode("latin-1")
                counts[f"{kind.__name__}: {line[9:12] if line.startswith('HTTP') else line}"] += 1
                if (
                    MARK in answer
                    or b"root:" in answer
                    or (kind is path and b" 200 " in answer[:20])
                ):
                    leaks.append(data)
                most[0] = (
                    max(most[0], resident_mb(server.pid)) if counts.total() % 50 == 0 else most[0]
                )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(args.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = server.poll() is None and b" 200 " in send(port, good, 30)
    print(f"{counts.total():_} requests in {time.monotonic() - start:.0f} s")
    for name, count in sorted(counts.items()):
        print(f"  {count:6}  {name}")
    print(
        f"memory: {before:.0f} MB before, {most[0]:.0f} at most, {resident_mb(server.pid):.0f} after"
    )
    print(
        f"the server {'still answers' if alive else 'HAS GONE'}; {len(leaks)} answers with a file of others"
    )
    server.terminate()
    sys.exit(0 if alive and not leaks and not any(": 500" in name for name in counts) else 1)


if __name__ == "__main__":
    main()

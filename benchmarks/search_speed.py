"""An index of a million vectors: minutes to build, latency of text queries with the model's forward pass, memory of the server.

    python benchmarks/search_speed.py FOLDER --rows 1000000 --clients 8 --seconds 60

Vectors are drawn around centres on few directions, as embeddings lie (a real collection could not be had), with text vectors in a cone of
their own. The server is `clip-jax serve`'s app in a process of its own, with a ViT-B-32 of random weights.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np

DIM = 512


def draw(rng: np.random.Generator, rows: int, shift: float) -> np.ndarray:
    """(rows, DIM) unit vectors: 2,000 centres, 24 directions within each, some noise, and a cone."""
    fixed = np.random.default_rng(7)
    centres_CE = fixed.normal(size=(2000, DIM)).astype(np.float32)
    basis_FE = fixed.normal(size=(24, DIM)).astype(np.float32)
    cone_E = fixed.normal(size=DIM).astype(np.float32)
    x_NE = centres_CE[rng.integers(2000, size=rows)]
    x_NE = x_NE + 0.35 * rng.normal(size=(rows, 24)).astype(np.float32) @ basis_FE
    x_NE += 0.3 * rng.normal(size=(rows, DIM)).astype(np.float32) + shift * cone_E
    return x_NE / np.linalg.norm(x_NE, axis=1, keepdims=True)


def prepare(folder: Path, rows: int):
    """A folder in the layout of `clip-jax embed`, without a manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    part = 50_000
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, rows, part)):
        count, rng = min(part, rows - first), np.random.default_rng(number)
        np.save(folder / f"img_emb/img_emb_{number:04d}.npy", draw(rng, count, 0.5).astype("f2"))
        np.save(folder / f"text_emb/text_emb_{number:04d}.npy", draw(rng, count, -0.5).astype("f2"))
        names = range(first, first + count)
        table = pa.table(
            {
                "image_path": [f"shard_{n // 10_000:05d}/{n:09d}.jpg" for n in names],
                "caption": [f"picture {n} of a red dog near the old house {n % 97}" for n in names],
                "label": [n % 1000 for n in names],
            }
        )
        pq.write_table(table, folder / f"metadata/metadata_{number:04d}.parquet")


def run_server(index: str, dtype: str | None, pipe):
    """The app with a model of random weights; tells its port, then its memory when asked."""
    import socket

    import jax

    from clip_jax.data.tokenizers.registry import ClipTokenizer
    from clip_jax.models.clip import create_model
    from clip_jax.search.http import limit_memory, make_server, serve
    from clip_jax.search.index import open_index
    from clip_jax.search.pictures import Pictures
    from clip_jax.search.queries import QueryEncoder
    from clip_jax.search.server import Service, create_app
    from clip_jax.weights.load import Loaded, preprocess_of

    limit_memory()  # as the command does
    opened, model = open_index(index), create_model("ViT-B-32")
    images, tokens = np.zeros((1, 224, 224, 3), np.uint8), np.ones((1, 77), np.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images, tokens)
    loaded = Loaded(model, jax.device_get(variables), ClipTokenizer(), preprocess_of(model.config))
    del variables
    encode = QueryEncoder(loaded, opened, dtype)
    del loaded
    encode.compile()
    print(f"model in {encode.dtype}", flush=True)
    bound = socket.create_server(("127.0.0.1", 0))
    app = create_app(Service(opened, encode, Pictures(opened)), token=None, hosts=None)
    serve(make_server(app), bound, started=lambda: pipe.send(bound.getsockname()[1]))


def memory(pid: int) -> dict[str, float]:
    """Resident MB of a process: its own, and that of files it has mapped, which the system can take back."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":") for line in lines if line.startswith("Rss"))
    return {name: int(value.split()[0]) / 1024 for name, value in found.items()}


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def client(port: int, seconds: float, number: int, times: list[float]):
    """Texts that differ, one after another."""
    wire, n = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        n += 1
        text = f"a photo of dog number {number} {n} on green grass"
        start = time.perf_counter()
        wire.request("POST", "/api/search", json.dumps({"query": [{"text": text}], "k": 20}))
        answer = wire.getresponse()
        body = json.loads(answer.read())
        assert answer.status == 200 and len(body["results"]) == 20, body
        times.append(time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--dtype", default="auto", help="of the model in the server, such as bfloat16"
    )
    parser.add_argument("--only", choices=["prepare", "build", "serve"])
    args = parser.parse_args()
    if args.only in (None, "prepare") and not (args.folder / "img_emb").exists():
        prepare(args.folder, args.rows)
    index = args.folder / "index"
    if args.only in (None, "build"):
        from clip_jax.search.index import build_index

        start = time.perf_counter()
        info = build_index(
            args.folder, index, method="approximate", report=lambda text: print(text, flush=True)
        )
        minutes = (time.perf_counter() - start) / 60
        print(f"{info['rows']:_} x {info['dim']}: built and measured in {minutes:.1f} min, {info['recall_at_10']}, "
              f"{info['candidates']} candidates, codes of {info['codes']['numbers']} numbers")  # fmt: skip
    if args.only in (None, "serve"):
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=run_server, args=(str(index), args.dtype, theirs), daemon=True
        )
        process.start()
        theirs.close()  # so that a server that fails is not waited for
        port = ours.recv()
        client(port, 3, 99, [])  # the first pages of the graph
        times: list[float] = []
        spent = cpu_seconds(process.pid)
        threads = [
            threading.Thread(target=client, args=(port, args.seconds, number, times))
            for number in range(args.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = cpu_seconds(process.pid) - spent
        p50, p99 = 1000 * np.percentile(times, [50, 99])
        print(
            f"{args.clients} clients: {len(times) / args.seconds:.0f} queries/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, "
            f"{1000 * spent / len(times):.1f} ms of processor time in the server for each"
        )
        found = memory(process.pid)
        size = sum(file.stat().st_size for file in (args.folder / "img_emb").iterdir()) / 2**20
        print(
            f"memory of the server: {found}, vectors' files {size:.0f} MB; {os.cpu_count()} cores"
        )
        process.kill()


if __name__ == "__main__":
    main()

"""Images per second from behind a slow server against the same shards on a disk, in turns in one run.

    python benchmarks/bucket_speed.py --folder /tmp/shards --seconds 10 --rounds 3

The shards are those of data_speed.py. The server, a process on this machine, waits 50 ms before each
answer and sends 50 MB/s on each connection. `disk` reads the shards themselves, in the same order in
blocks; `global` reads each sample by a request, which is what `--data.shuffle global` does. Requests
and bytes are the server's own counts, over whole epochs. `--reads 200` compares the two orders on a disk
that allows so many random reads a second. `--listing 40000` times the first batch from so many small
shards in a bucket, which lists a thousand in a request, with sizes.json and without an index.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
from data_speed import SHARDS, make_shards

from clip_jax import storage
from clip_jax.config import AugmentConfig, DataConfig, PreprocessConfig
from clip_jax.data.dataset import TrainDataset
from clip_jax.data.loader import train_batches
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tokenizers.registry import ClipTokenizer

BATCH, PAGE = 64, 1000
READING = {"image_size": 224, "preprocess": PreprocessConfig(), "seed": 0}


def settings(folder: str, **changes) -> DataConfig:
    base = {"batch_size": BATCH, "threads": 2, "augment": AugmentConfig(resize="fast")}
    return DataConfig(data_dir=f"{folder}/indexes", **base | changes)


class Reading:
    """Batches that go on from where they were, and how fast they come."""

    def __init__(self, spec: str, cfg: DataConfig):
        self.source = open_source(spec, "train", cfg)
        self.batches = train_batches(self.source, ClipTokenizer(), cfg, **READING)
        self.rates: list[float] = []
        self.cpu_rates: list[float] = []

    def run(self, seconds: float):
        next(self.batches)
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            count += len(next(self.batches)["image"])
        self.rates.append(count / (time.perf_counter() - start))
        self.cpu_rates.append(count / (time.process_time() - cpu))


def compare(folder: str, seconds: float, rounds: int, latency: float, bandwidth: float):
    command = [sys.executable, Path(__file__).with_name("slow_server.py"), folder]
    command += [f"--latency={latency}", f"--bandwidth={bandwidth}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        shards = f"{{00000..{SHARDS - 1:05d}}}.tar"
        readings = {
            "disk": Reading(f"tar:{folder}/{shards}", settings(folder, shuffle="block")),
            "bucket": Reading(f"tar:{url}/{shards}", settings(folder, index="always")),
            "global": Reading(f"tar:{url}/{shards}", settings(folder, shuffle="global")),
        }
        for number in range(rounds):
            for name, reading in readings.items():
                reading.run(seconds)
                print(
                    time.strftime("%X"),
                    number,
                    name,
                    f"{reading.rates[-1]:.0f} images/s, {reading.cpu_rates[-1]:.0f} a CPU-second",
                    flush=True,
                )
        disk, disk_cpu = (
            np.median(rates) for rates in (readings["disk"].rates, readings["disk"].cpu_rates)
        )
        for name, reading in readings.items():
            rate, cpu = np.median(reading.rates), np.median(reading.cpu_rates)
            print(
                f"{name}: {rate:.0f} images/s, {rate / disk:.2f} of the disk's; "
                f"{cpu:.0f} a CPU-second of this process, {cpu / disk_cpu:.2f}"
            )
            reading.batches.close()
        count_an_epoch(url, shards, folder)
    finally:
        server.kill()
        server.wait()


def count_an_epoch(url: str, shards: str, folder: str, epochs: int = 10):
    """Requests and bytes of an epoch, once what is read ahead stays the same."""
    cfg = settings(folder, index="always", threads=16)
    source = open_source(f"tar:{url}/{shards}", "train", cfg)
    data = sum((Path(folder) / f"{shard:05d}.tar").stat().st_size for shard in range(SHARDS))
    dataset = undecoded(source, cfg)
    per_epoch, found = len(source) // BATCH, []
    for step in range((epochs + 4) * per_epoch):
        if step in (4 * per_epoch, (epochs + 4) * per_epoch - 1):
            found.append(counts(url))
        list(map(dataset.__getitem__, range(step * BATCH, (step + 1) * BATCH)))
        dataset.release(step)
    requests, size = (found[1][name] - found[0][name] for name in ("requests", "bytes"))
    held = dataset._reader.most_used
    dataset.close()
    print(
        f"an epoch of {data / 1e6:.0f} MB: {size / data / epochs:.2f} times its bytes, "
        f"{len(source) * epochs / requests:.0f} samples a request; {held / 1e6:.0f} MB held at most"
    )


def undecoded(source, cfg: DataConfig):
    """A dataset whose samples are read and not decoded, so that reading is what limits."""
    options = {**READING, "process_index": 0, "process_count": 1}
    dataset = TrainDataset([source], ClipTokenizer(), cfg, **options)
    dataset._load = lambda sample, rng: (0, 0)
    return dataset


def counts(url: str) -> dict:
    with urllib.request.urlopen(f"{url}/counts") as answer:
        return json.load(answer)


def slow_disk(folder: str, reads: int, seconds: float):
    """The two orders on a disk that does so many reads at random places a second."""
    lock, free, last = threading.Lock(), [time.monotonic()], {}
    plain = storage.read_range

    def read(path, start, end, *, info=None):
        with lock:
            at_random = last.get(path) != start
            last[path] = end
            free[0] = max(free[0], time.monotonic()) + at_random / reads
            wait = free[0] - time.monotonic()
        time.sleep(max(0.0, wait))
        return plain(path, start, end, info=info)

    storage.read_range = read
    rates = {}
    for shuffle in ("global", "block", "global", "block"):
        cfg = settings(folder, shuffle=shuffle, threads=16)
        source = open_source(f"tar:{folder}/*.tar", "train", cfg)
        with lock:
            free[0] = time.monotonic()
        rates.setdefault(shuffle, []).append(read_alone(source, cfg, seconds))
    storage.read_range = plain
    rate = {name: np.median(found) for name, found in rates.items()}
    print(f"{reads} random reads a second: " + ", ".join(f"{n} {r:.0f} samples/s" for n, r in rate.items()) + f", {rate['block'] / rate['global']:.1f} times")  # fmt: skip


def read_alone(source, cfg: DataConfig, seconds: float) -> float:
    """Samples a second that are read and not decoded, so that reading is what limits."""
    dataset = undecoded(source, cfg)
    start, step, count = time.perf_counter(), 0, 0
    with ThreadPoolExecutor(cfg.threads) as pool:
        while time.perf_counter() - start < seconds:
            rows = range(step * dataset.rows, (step + 1) * dataset.rows)
            count += len(list(pool.map(dataset.__getitem__, rows)))
            dataset.release(step)
            step += 1
    dataset.close()
    return count / (time.perf_counter() - start)


class Bucket(fsspec.AbstractFileSystem):
    """Shards that are all alike, in a bucket that answers after 50 ms and lists by pages."""

    protocol = "alike"
    shards, shard, latency, requests = 0, b"", 0.05, 0
    lock = threading.Lock()

    def _request(self, count: int = 1):
        with self.lock:
            Bucket.requests += count
        time.sleep(self.latency * count)

    def ls(self, path, detail=True, **options):
        self._request(-(-self.shards // PAGE))
        names = [f"b/{number:05d}.tar" for number in range(self.shards)] + ["b/sizes.json"]
        found = [
            {"name": name, "size": len(self.shard), "type": "file", "etag": "1"} for name in names
        ]
        return found if detail else names

    def info(self, path, **options):
        self._request()
        path = self._strip_protocol(path)
        if path == "b":
            return {"name": path, "size": 0, "type": "directory"}
        if path != "b/sizes.json" and not path.endswith(".tar"):
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.shard), "type": "file", "etag": "1"}

    def cat_file(self, path, start=None, end=None, **options):
        self._request()
        if path.endswith("sizes.json"):
            return json.dumps({f"{n:05d}.tar": 8 for n in range(self.shards)}).encode()
        time.sleep((end - start) / 50e6)
        return self.shard[start:end]


def listing(shards: int):
    """Seconds and requests to the first batch from a bucket of so many shards."""
    from PIL import Image

    file, picture = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "JPEG")
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number in range(8):
            for suffix, data in (("jpg", picture.getvalue()), ("txt", b"a picture")):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    Bucket.shards, Bucket.shard = shards, file.getvalue()
    fsspec.register_implementation("alike", Bucket, clobber=True)
    with tempfile.TemporaryDirectory() as folder:
        cfg = settings(folder)
        start = time.perf_counter()
        source = open_source("tar:alike://b/*.tar", "train", cfg)
        opened, requests = time.perf_counter() - start, Bucket.requests
        with train_batches(source, ClipTokenizer(), cfg, **READING) as batches:
            next(batches)
            first = time.perf_counter() - start
        print(
            f"{shards} shards: opened in {opened:.1f} s with {requests} requests; first batch after {first:.1f} s"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="/tmp/clip_jax_speed")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--bandwidth", type=float, default=50e6)
    parser.add_argument("--reads", type=int, help="random reads a second of an emulated disk")
    parser.add_argument("--listing", type=int, help="shards of a bucket")
    args = parser.parse_args()
    if args.listing:
        listing(args.listing)
        return
    make_shards(Path(args.folder))
    if args.reads:
        slow_disk(args.folder, args.reads, args.seconds)
        return
    compare(args.folder, args.seconds, args.rounds, args.latency, args.bandwidth)


if __name__ == "__main__":
    main()

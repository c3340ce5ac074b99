"""The bench measures what it says."""

import dataclasses
import time

import pytest

from clip_jax.config import DataConfig
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tools.bench import PEAK_TFLOPS, Bench, Stage, bench, check_chips, images_of
from clip_jax.data.tools.bench_storage import Link


def test_the_slowest_stage_is_said_to_limit(numbered, letters, settings):
    class Slow(numbered):
        def __getitem__(self, index):
            end = time.thread_time() + 0.004
            while time.thread_time() < end:
                pass
            return super().__getitem__(index)

    found = bench(Slow(50), letters, settings(), image_size=8, seconds=0.2, samples=10)
    assert found.limit.name == "read" and 0.004 <= found.limit.seconds < 0.02
    assert 0 < found.images_per_cpu_second < 250
    assert "<- limits" in found.to_text() and "H100" in found.to_text()


def test_bad_samples_do_not_stop_it(numbered, letters, settings):
    source = numbered(400, frozenset({1, 2}))
    assert bench(source, letters, settings(), image_size=8, seconds=0.1).images_per_second > 0


def test_overhead_and_cores_follow_from_the_rates():
    stages = (Stage("read", 0.0002), Stage("decode", 0.0008))
    found = Bench("s", stages, 1600.0, 800.0, 0.1, 0)
    assert found.overhead == pytest.approx(0.25)
    assert found.cores_for("TPU v5e") == 2 and PEAK_TFLOPS["TPU v5e"] / 2 / 0.123 > 800


LINK = Link(
    latency_s=0.05, connection=50e6, together=800e6, connections=64, sample_bytes=1e5, request_bytes=1e7
)  # fmt: skip


def test_what_limits_follows_from_the_rates(monkeypatch):
    monkeypatch.setattr("clip_jax.data.tools.bench.cores", lambda: 10)
    stages = (Stage("read", 0.0002), Stage("decode", 0.0008))
    decoding = Bench("s", stages, 1600.0, 700.0, 0.1, 0, LINK)
    assert LINK.images_per_second == pytest.approx(8000) and decoding.bottleneck == "decoding"
    wide = dataclasses.replace(decoding, images_per_cpu_second=2000.0)
    assert wide.bottleneck == "bandwidth"
    # A process's own clock says little of what it could do.
    waiting = dataclasses.replace(decoding, images_per_cpu_second=1.0, workers=2)
    assert dataclasses.replace(waiting, stages=(Stage("decode", 0.0001),)).bottleneck == "bandwidth"
    # 64 connections with a request of 20 kB each 50 ms.
    small = dataclasses.replace(LINK, request_bytes=2e4, sample_bytes=1e4)
    assert small.images_per_second == pytest.approx(64 * 2 / (0.05 + 2e4 / 50e6))
    assert dataclasses.replace(wide, link=small).bottleneck == "latency"
    asking = dataclasses.replace(wide, askers=8)  # 8 threads at 50 ms are below 160 images/s
    assert asking.bottleneck == "latency" and "data.shuffle=block" in asking.to_text()
    assert dataclasses.replace(asking, images_per_cpu_second=10.0).bottleneck == "decoding"
    assert small.one_by_one == pytest.approx(1 / (0.05 + 1e4 / 50e6))


def test_the_settings_feed_the_chips_of_a_host():
    found = Bench("s", (Stage("read", 0.005),), 1600.0, 200.0, 0.1, 0, LINK)
    need = 4 * images_of("TPU v5e")
    said = "\n".join(found.settings_for("TPU v5e", 4, DataConfig()))
    cores = -(-need // 200)
    assert (
        f"{cores:.0f} cores, {need / 10:.0f} MB/s on {LINK.connections_for(need)} connections"
        in said
    )
    assert "--data.workers 5 --data.threads 4 --data.shuffle block" in said and cores <= 5 * 4
    assert "too little" not in said
    poor = dataclasses.replace(found, link=dataclasses.replace(LINK, together=100e6))
    assert "it feeds 1.2 of these chips" in "\n".join(poor.settings_for("TPU v5e", 4, DataConfig()))


def test_a_bucket_is_measured_in_blocks(shards, reading, settings):
    cfg = settings(batch_size=10)
    source = open_source(f"tar:file://{shards}/*.tar", "train", cfg)
    found = bench(source, reading["tokenizer"], cfg, image_size=8, seconds=0.1, samples=8)
    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert found.link.sample_bytes * len(source) == pytest.approx(size, rel=0.5)
    assert found.link.connection > 0 and found.link.together >= found.link.connection
    text = found.to_text()
    assert "storage: " in text and "samples a request" in text and "limits: " in text
    assert found.to_json()["images_per_host"] == found.link.images_per_second


@pytest.mark.parametrize(("chip", "chips"), [("TPU v9", 4), ("H100", 0)])
def test_a_chip_that_is_not_known_is_refused(chip, chips):
    with pytest.raises(ValueError, match=r"TPU v5e|at least 1"):
        check_chips(chip, chips)

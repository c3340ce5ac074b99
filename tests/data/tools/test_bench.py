"""The bench measures what it says."""

import time

import pytest

from clip_jax.data.tools.bench import PEAK_TFLOPS, Bench, Stage, bench


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

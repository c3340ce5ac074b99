"""Beam's own runner writes the very files that one machine writes."""

import pytest

from clip_jax.data.tools.convert import convert
from clip_jax.data.tools.convert_beam import convert_on_beam


def test_the_local_runner_writes_the_same_files(shards, tmp_path, settings):
    spec = f"tar:{shards}/*.tar"
    expected = convert(spec, settings(), str(tmp_path / "a"), shard_samples=8, workers=1)
    convert_on_beam(
        spec, settings(), str(tmp_path / "b"), shard_samples=8, options=["--runner=DirectRunner"]
    )
    assert len(expected["shards"]) == 4
    for name in ("manifest.json", *(entry["name"] for entry in expected["shards"])):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_a_random_order_is_the_same_one_on_both(shards, tmp_path, settings):
    spec, given = f"tar:{shards}/*.tar", {"shard_samples": 16, "shuffle": 3}
    expected = convert(spec, settings(), str(tmp_path / "a"), workers=1, **given)
    convert_on_beam(
        spec, settings(), str(tmp_path / "b"), options=["--runner=DirectRunner"], **given
    )
    for name in ("manifest.json", *(entry["name"] for entry in expected["shards"])):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_too_many_bad_samples_fail_the_pipeline(tmp_path, settings, write_tar, encode):
    write_tar(tmp_path / "s.tar", {"1.png": encode((1, 1, 1)), "1.txt": b"a", "2.txt": b"b"})
    with pytest.raises(Exception, match="1 of 2 samples cannot be used"):
        convert_on_beam(f"tar:{tmp_path}/s.tar", settings(), str(tmp_path / "out"))

"""The manifest: no byte of a checkpoint changes unseen."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from clip_jax.runs import manifest


@pytest.fixture
def saved(tmp_path) -> epath.Path:
    """A real checkpoint with its manifest."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(
            tmp_path / "1", {"kernel": np.random.default_rng(0).normal(size=(64, 64))}
        )
    path = epath.Path(tmp_path / "1")
    manifest.write(path)
    assert manifest.damage(path) is None
    return path


def files_of(directory: epath.Path) -> list[epath.Path]:
    listed = json.loads((directory / manifest.NAME).read_text())["files"]
    return [directory / name for name in listed]


def test_any_single_flipped_bit_is_found_in_any_file(saved):
    rng = np.random.default_rng(0)
    largest = max(files_of(saved), key=lambda path: path.stat().length)
    paths = [path for path in files_of(saved) if path.stat().length]
    assert len(paths) >= 5 and largest.stat().length > 10_000
    for path in [largest] * 50 + paths * 3:
        intact = path.read_bytes()
        data = bytearray(intact)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        assert f"{path.name} has other bytes" in manifest.damage(saved)
        path.write_bytes(intact)
    assert manifest.damage(saved) is None


def test_a_byte_more_or_less_and_a_lost_file_are_named(saved):
    for path in files_of(saved):
        intact = path.read_bytes()
        for data in (intact + b"0", intact[:-1]) if intact else (b"0",):
            path.write_bytes(data)
            assert f"has {len(data)} bytes where {len(intact)} were saved" in manifest.damage(saved)
        path.unlink()
        assert f"{path.name} is missing" in manifest.damage(saved)
        path.write_bytes(intact)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3}', '{"files": {"a": 3}}'])
def test_a_manifest_that_makes_no_sense_is_damage(saved, content):
    (saved / manifest.NAME).write_text(content)
    assert manifest.damage(saved) is not None


def test_a_folder_without_a_manifest_was_never_completed(tmp_path):
    assert "never completed" in manifest.damage(epath.Path(tmp_path))


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_processes_share_the_files_and_one_of_them_finds_the_damage(saved, parts):
    path = files_of(saved)[-1]
    path.write_bytes(path.read_bytes() + b"0")
    found = [manifest.damage(saved, part=part, parts=parts) for part in range(parts)]
    assert sum(problem is not None for problem in found) == 1

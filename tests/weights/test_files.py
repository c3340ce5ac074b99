"""Tests of files of tensors."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from clip_jax.weights.files import open_tensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4).astype(ml_dtypes.bfloat16),
    "c": np.array(1.5, np.float16),
}


def check(path):
    tensors = open_tensors(path)
    assert dict(tensors.shapes()) == {"a": (2, 3), "b": (4,), "c": ()}
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(tensors.read(name), expected)


def test_safetensors_are_read_in_one_piece_and_sharded(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    check(tmp_path / "model.safetensors")
    save_file({"a": TENSORS["a"]}, tmp_path / "1.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    places = {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}
    index.write_text(json.dumps({"weight_map": places}))
    check(index)
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.safetensors"):
        open_tensors(index)
    index.write_text("[]")
    with pytest.raises(ValueError, match="no index"):
        open_tensors(index)


def test_npz_files_are_read_without_their_data(tmp_path):
    plain = {name: TENSORS[name] for name in ("a", "c")}
    np.savez(tmp_path / "a.npz", **plain)
    tensors = open_tensors(tmp_path / "a.npz")
    assert tensors.shapes() == {"a": (2, 3), "c": ()}
    np.testing.assert_array_equal(tensors.read("a"), TENSORS["a"])


def test_a_pickled_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(ValueError, match="plain arrays"):
        open_tensors(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.pt"])
def test_a_damaged_file_is_named(name, tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", a=TENSORS["a"])
    (tmp_path / "a.pt").write_bytes(b"\x80\x02}q\x00.")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=name):
        open_tensors(tmp_path / name)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_tensors(tmp_path / "nowhere.pt")
    (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ValueError, match=r"a GGUF file.*\.safetensors"):
        open_tensors(tmp_path / "a.gguf")


def test_a_matrix_of_zeros_is_said_once(tmp_path, caplog):
    zeros = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 3), np.float32)}
    save_file(TENSORS | zeros | {"bias": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors")
    for name in ("bias", "c", "a", "b"):
        tensors.read(name)
    assert caplog.text.count("is zero everywhere") == 1 and 'tensor "a"' in caplog.text

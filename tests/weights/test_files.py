"""Tests of files of tensors."""

import io
import json
import zipfile

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


INDEXES = {
    "[]": "no index of files",
    '{"weight_map": ["a"]}': "no index of files",
    '{"weight_map": {}}': "lists no files",
    '{"weight_map": {"a": 3}}': "names 3, which is no file in its folder",
    '{"weight_map": {"a": "../1.safetensors"}}': "names '../1.safetensors', which is no file in its",
    '{"weight_map": {"a": "/1.safetensors"}}': "names '/1.safetensors', which is no file in its",
    '{"weight_map": {"a": "model.index.json"}}': "which is an index itself",
    '{"weight_map": ' + 100_000 * "[": "nest too deeply",
}


@pytest.mark.parametrize("content", INDEXES, ids=range(len(INDEXES)))
def test_an_index_that_cannot_be_followed_is_refused(content, tmp_path):
    folder = tmp_path / "inside"
    folder.mkdir()
    save_file(TENSORS, tmp_path / "1.safetensors")
    (folder / "model.index.json").write_text(content)
    with pytest.raises(ValueError, match=rf"model\.index\.json .*{INDEXES[content]}"):
        open_tensors(folder / "model.index.json")


def flip(data: bytes, start: int, value: bytes) -> bytes:
    return data[:start] + value + data[start + len(value) :]


def npz(compression: int) -> bytes:
    file, array = io.BytesIO(), io.BytesIO()
    np.save(array, np.random.default_rng(0).normal(size=1000))
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("a.npy", array.getvalue())
    return file.getvalue()


DAMAGED = {
    "deflate": lambda: flip(npz(zipfile.ZIP_DEFLATED), 50, b"\xff" * 40),
    "bzip2": lambda: flip(npz(zipfile.ZIP_BZIP2), 60, b"\xff" * 40),
    "lzma": lambda: flip(npz(zipfile.ZIP_LZMA), 60, b"\xff" * 40),
    "directory": lambda: npz(zipfile.ZIP_STORED).replace(b"PK\x01\x02", b"XXXX"),
    "encrypted": lambda: npz(zipfile.ZIP_STORED).replace(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\x01"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_named(name, tmp_path):
    (tmp_path / "a.npz").write_bytes(DAMAGED[name]())
    with pytest.raises(ValueError, match=r"a\.npz"):
        open_tensors(tmp_path / "a.npz").read("a")


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

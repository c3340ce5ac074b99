"""Tests of reading .pt files without torch: the files are made here, byte by byte."""

import argparse
import collections
import datetime
import enum
import io
import pickle
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from clip_jax.weights import torch_files
from clip_jax.weights.files import open_tensors
from clip_jax.weights.state_dicts import find_state_dict
from clip_jax.weights.torch_files import MAGIC, TorchFile
from clip_jax.weights.torch_pickles import ALLOWED, Reader


class Colour(enum.Enum):
    RED = 1


class Storage:
    """Stands for a torch storage: the pickler writes its id, and its bytes go beside it."""

    def __init__(self, array, kind):
        self.array, self.kind = array, kind


@pytest.fixture
def torch_names(monkeypatch):
    """Functions and classes under torch's names, so that pickles can name them."""
    torch = types.ModuleType("torch")
    utils = types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*arguments):
        raise AssertionError("called while a file is written")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for kind in ("FloatStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch", "__qualname__": kind}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return torch


def save(path, content, torch, compression=zipfile.ZIP_STORED, *, old=False):
    storages = []

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            kind = "HalfStorage" if self.array.dtype == np.float16 else "FloatStorage"
            strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
            storage = Storage(self.array, getattr(torch, kind))
            rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
            return rebuild, (storage, 0, self.array.shape, strides, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            storages.append(obj.array)
            key = str(len(storages) - 1)
            return ("storage", obj.kind, key, "cpu", obj.array.size, *([None] if old else []))

        def reducer_override(self, obj):
            return Tensor(obj).__reduce__() if isinstance(obj, np.ndarray) else NotImplemented

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(content)
    if old:  # the form before torch 1.6
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
        keys = [str(key) for key in range(len(storages))]
        first, last = [MAGIC, 1001, system], [keys]
        with path.open("wb") as stream:
            stream.write(b"".join(pickle.dumps(part, protocol=2) for part in first))
            stream.write(file.getvalue())
            stream.write(b"".join(pickle.dumps(part, protocol=2) for part in last))
            for array in storages:
                stream.write(array.size.to_bytes(8, "little") + array.tobytes())
        return
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())


TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.c": np.arange(4, dtype=np.float16),
    "scale": np.array(2.5, np.float32),
}


def check(file):
    assert file.shapes() == {"a": (3, 4), "b.c": (4,), "scale": ()}
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(file.read(name), expected)
        assert file.read(name).dtype == expected.dtype


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_state_dict_is_read(compression, torch_names, tmp_path):
    save(tmp_path / "a.pt", OrderedDict(TENSORS), torch_names, compression)
    check(TorchFile(tmp_path / "a.pt"))


@pytest.mark.parametrize("name", ["a", "a.ckpt", "a.pth.tar", "a.PT", "a.safetensors"])
@pytest.mark.parametrize("old", [False, True])
def test_the_content_tells_the_format(name, old, torch_names, tmp_path):
    save(tmp_path / name, {"state_dict": TENSORS}, torch_names, old=old)
    check(open_tensors(tmp_path / name))


def test_a_file_from_before_torch_1_6_is_read_without_torch(torch_names, tmp_path):
    save(tmp_path / "a.pt", {"state_dict": TENSORS}, torch_names, old=True)
    check(TorchFile(tmp_path / "a.pt"))
    data = (tmp_path / "a.pt").read_bytes()
    for share in (0.02, 0.5, 0.95):
        (tmp_path / "b.pt").write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=r"b\.pt"):
            TorchFile(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("compression", "old"),
    [(zipfile.ZIP_STORED, False), (zipfile.ZIP_STORED, True), (zipfile.ZIP_DEFLATED, False)],
)
def test_tensors_are_read_one_at_a_time(compression, old, torch_names, tmp_path):
    tensors = {f"t{i}": np.full((256, 1024), i, np.float32) for i in range(8)}
    save(tmp_path / "a.pt", {"state_dict": tensors}, torch_names, compression, old=old)
    tracemalloc.start()
    file = open_tensors(tmp_path / "a.pt")
    for name, expected in tensors.items():
        assert (file.read(name) == expected).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3.5 * tensors["t0"].nbytes  # of which the comparison takes one and a half


def rewrite(path, changes):
    """The same archive with other members, compressed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_an_archive_takes_no_more_memory_than_its_tensors(torch_names, tmp_path, monkeypatch):
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    for file in (path, other):
        save(file, TENSORS, torch_names, zipfile.ZIP_DEFLATED)
    rewrite(path, {"archive/data/0": TENSORS["a"].tobytes() + bytes(50_000_000)})
    rewrite(other, {"archive/byteorder": bytes(50_000_000)})
    tracemalloc.start()
    check(TorchFile(path))
    with pytest.raises(ValueError, match="big-endian"):
        TorchFile(other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    monkeypatch.setattr(torch_files, "MOST_UNPACKED", 100_000)
    rewrite(path, {"archive/data.pkl": b"\x80\x02" + 100_000 * b"N0" + b"N."})
    with pytest.raises(ValueError, match=r"a\.pt was not read: its pickle unpacks to"):
        TorchFile(path)


@pytest.mark.parametrize("whole", [False, True])
def test_numbers_of_a_type_that_is_not_read_are_named_unless_they_lie_beside(
    whole, torch_names, tmp_path
):
    kind = type("ComplexFloatStorage", (), {"__module__": "torch"})
    torch_names.ComplexFloatStorage = kind
    torch_names.HalfStorage = kind  # as which `save` writes float16
    if whole:
        save(tmp_path / "a.pt", {"b.c": TENSORS["b.c"]}, torch_names)
    else:
        save(tmp_path / "a.pt", TENSORS, torch_names)
    with pytest.raises(ValueError, match=r'"b\.c" was saved as torch\.ComplexFloatStorage'):
        TorchFile(tmp_path / "a.pt")
    beside = {"state_dict": {"a": TENSORS["a"]}, "rng": TENSORS["b.c"]}
    save(tmp_path / "a.pt", beside, torch_names)
    assert TorchFile(tmp_path / "a.pt").shapes() == {"a": (3, 4)}


def test_float8_is_named():
    make = ALLOWED["torch._utils", "_rebuild_tensor_v3"]
    kind = Reader(io.BytesIO()).find_class("torch", "float8_e4m3fn")
    with pytest.raises(ValueError, match=r'"a" was saved as torch\.float8_e4m3fn'):
        find_state_dict({"a": make(None, 0, (2,), (1,), False, OrderedDict(), kind)}, "x.pt")


def test_a_training_checkpoint_gives_its_state_dict(torch_names, tmp_path):
    inner = {f"module.{name}": tensor for name, tensor in TENSORS.items()}
    save(tmp_path / "a.pt", {"epoch": 3, "name": "run", "state_dict": inner}, torch_names)
    check(open_tensors(tmp_path / "a.pt"))


class Malice:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle was run')",))


def test_a_pickle_that_would_run_code_is_refused_before_it_runs(torch_names, tmp_path):
    save(tmp_path / "a.pt", {"state_dict": TENSORS, "extra": Malice()}, torch_names)
    with pytest.raises(ValueError, match=r"builtin.*\.exec.*refused"):
        TorchFile(tmp_path / "a.pt")


def test_harmless_objects_beside_the_weights_are_skipped(torch_names, tmp_path):
    beside = {
        "args": argparse.Namespace(lr=1e-3, path=tmp_path),
        "best": np.float64(0.7),
        "seen": {1, 2},
        "when": datetime.datetime(2026, 11, 29),
        "counts": collections.Counter("abc"),
        "kind": Colour.RED,
        "steps": range(3),
    }
    save(tmp_path / "a.pt", {"state_dict": TENSORS, **beside}, torch_names)
    check(TorchFile(tmp_path / "a.pt"))


def test_numbers_that_are_no_tensor_are_named(torch_names, tmp_path):
    save(tmp_path / "a.pt", TENSORS | {"logit_scale": np.float32(4.6)}, torch_names)
    with pytest.raises(ValueError, match=r'"logit_scale" was saved as numpy.*scalar'):
        TorchFile(tmp_path / "a.pt")


def test_a_whole_model_is_no_state_dict(torch_names, tmp_path):
    save(tmp_path / "a.pt", argparse.Namespace(weight=TENSORS["a"]), torch_names)
    with pytest.raises(ValueError, match=r"class argparse\.Namespace.*save model\.state_dict"):
        TorchFile(tmp_path / "a.pt")


@pytest.mark.parametrize("key", ["model", "model_state_dict", "module", "net", "anything"])
def test_the_weights_are_found_one_level_down(key, torch_names, tmp_path):
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    save(tmp_path / "a.pt", {key: TENSORS, "epoch": 3, "optimizer": optimizer}, torch_names)
    check(TorchFile(tmp_path / "a.pt"))


def test_the_keys_are_named_where_the_weights_are_not_found(torch_names, tmp_path):
    content = {"generator": TENSORS, "critic": TENSORS, "epoch": 3}
    save(tmp_path / "a.pt", content, torch_names)
    with pytest.raises(ValueError, match="no state dict: its keys are generator, critic, epoch"):
        TorchFile(tmp_path / "a.pt")


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
def test_which_of_two_sets_of_weights_was_read_is_said(average, torch_names, tmp_path, caplog):
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    save(tmp_path / "a.pt", {average: other, "state_dict": TENSORS}, torch_names)
    check(TorchFile(tmp_path / "a.pt"))
    assert f'averaged weights "{average}": read "state_dict"' in caplog.text
    caplog.clear()
    save(tmp_path / "a.pt", {average: TENSORS}, torch_names)
    check(TorchFile(tmp_path / "a.pt"))
    assert f'read the averaged weights "{average}"' in caplog.text


def test_a_tensor_beyond_its_storage_is_refused(torch_names, tmp_path):
    wide = np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (4, 4), (16, 4))
    save(tmp_path / "a.pt", {"a": wide}, torch_names)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        content = archive.read("archive/data.pkl")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", b"\x00" * 16)
    with pytest.raises(ValueError, match="beyond its storage"):
        TorchFile(tmp_path / "b.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_damaged(share, torch_names, tmp_path):
    save(tmp_path / "a.pt", TENSORS, torch_names)
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"b\.pt"):
        TorchFile(tmp_path / "b.pt")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}])
def test_a_file_without_tensors_is_no_state_dict(content, torch_names, tmp_path):
    save(tmp_path / "a.pt", content, torch_names)
    with pytest.raises(ValueError, match="no state dict"):
        TorchFile(tmp_path / "a.pt")


def test_numbers_that_changed_in_the_file_are_named_by_their_checksum(torch_names, tmp_path):
    save(tmp_path / "a.pt", TENSORS, torch_names)
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(TENSORS["a"].tobytes()) + 8] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    file = open_tensors(tmp_path / "a.pt")
    np.testing.assert_array_equal(file.read("b.c"), TENSORS["b.c"])
    with pytest.raises(ValueError, match=r'a\.pt: tensor "a" cannot be read: the checksum'):
        file.read("a")


def test_a_tensor_whose_signs_are_kept_apart_is_refused():
    storage = Storage("0", np.dtype(np.float32))
    make = ALLOWED["torch._utils", "_rebuild_tensor_v2"]
    assert make(storage, 0, (2,), (1,), False, OrderedDict(), {}).shape == (2,)
    with pytest.raises(pickle.UnpicklingError, match="stored without neg"):
        make(storage, 0, (2,), (1,), False, OrderedDict(), {"neg": True})


def test_a_tensor_under_a_number_is_refused(torch_names, tmp_path):
    save(tmp_path / "a.pt", {**TENSORS, 3: TENSORS["a"]}, torch_names)
    with pytest.raises(ValueError, match=r"a\.pt: a tensor is called 3"):
        TorchFile(tmp_path / "a.pt")

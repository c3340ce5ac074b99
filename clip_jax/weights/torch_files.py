"""torch's .pt files, state dicts and TorchScript archives alike, read without running them."""

import collections
import io
import mmap
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

# What zipfile, pickle and NumPy raise for bytes that are not what they seem.
DAMAGE = (zipfile.BadZipFile, KeyError, EOFError, IndexError, TypeError, ValueError, AttributeError,
          OverflowError)  # fmt: skip


class TorchFile:
    """The state dict that a .pt file holds, its tensors mapped from the file.

    Archives are unpickled by a reader that builds tensors and containers and nothing else: a
    pickle that names any other function or class is refused before it is called. A file of the
    form before torch 1.6 is left to `torch.load(weights_only=True)`.

    Attributes:
      is_torchscript: the file is a TorchScript archive, as OpenAI released its models.

    Raises:
      ValueError: the file is damaged, wants to run code, or holds no state dict.
    """

    def __init__(self, path: Path):
        self.is_torchscript = False
        self._mapped: mmap.mmap | None = None
        if not zipfile.is_zipfile(path):
            self._arrays = _state_dict(_read_old(path), path)
            return
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                content = _unpickle(archive, self._mapped)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} was not read: {error}") from error
        except DAMAGE as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        self.is_torchscript = isinstance(content, _Module)
        self._arrays = _state_dict(content, path)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor, to be copied before the next one is read."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            # What was read before need not stay in memory.
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return self._arrays[name]


def _unpickle(archive: zipfile.ZipFile, mapped: mmap.mmap) -> Any:
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    return _Reader(archive, mapped, name.removesuffix("data.pkl")).load()


class _Module(dict):
    """What stands for an object of TorchScript: its attributes, by their names."""

    def __setstate__(self, state: dict):
        self.update(state)


class _Reader(pickle.Unpickler):
    """Builds tensors and containers. Whatever else a pickle asks for is an error."""

    def __init__(self, archive: zipfile.ZipFile, mapped: mmap.mmap, folder: str):
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self._archive = archive
        self._mapped = mapped
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module.startswith("__torch__"):
            return _Module
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        raise pickle.UnpicklingError(
            f"its pickle asks for {module}.{name}, which is no tensor; a file that would run code "
            "is refused (save the state dict alone, or as safetensors)"
        )

    def persistent_load(self, pid: tuple) -> np.ndarray:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        info = self._archive.getinfo(f"{self._folder}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(self._archive.read(info), dtype)
        # The member's bytes follow its local header, of which only the lengths of two fields vary.
        header = self._mapped[info.header_offset : info.header_offset + 30]
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = info.header_offset + 30 + names
        if start + info.file_size > len(self._mapped):
            raise EOFError(f"storage {key} ends after the file does")
        count = info.file_size // np.dtype(dtype).itemsize
        return np.frombuffer(self._mapped, dtype, count, start)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_) -> np.ndarray:
    size = storage.itemsize
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides)) if shape else offset
    if offset < 0 or any(stride < 0 for stride in strides) or last >= max(len(storage), 1):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    strides = [stride * size for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.jit._pickle", "build_intlist"): list,
    ("torch.jit._pickle", "build_doublelist"): list,
    ("torch.jit._pickle", "build_boollist"): list,
    ("torch.jit._pickle", "build_tensorlist"): list,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
}


def _state_dict(content: Any, path: Path) -> dict[str, np.ndarray]:
    """Find the tensors by their names, as torch's own state_dict() gives them."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]  # of a training checkpoint
    if isinstance(content, _Module):
        content = dict(_parameters(content, ""))
    tensors = {
        name: value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, np.ndarray)
    }
    if not tensors:
        raise ValueError(f"{path} holds no state dict")
    for prefix in ("module.", "_orig_mod."):  # of DistributedDataParallel and torch.compile
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _parameters(module: _Module, prefix: str):
    for name, value in module.items():
        if isinstance(value, _Module):
            yield from _parameters(value, f"{prefix}{name}.")
        elif isinstance(value, np.ndarray):
            yield prefix + name, value


def _read_old(path: Path) -> Any:
    try:
        # Only this rare form needs torch, which is large and not always there.
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} is no zip archive: it is damaged, or older than torch 1.6 and needs torch"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, all of which mean that it is unreadable
        raise ValueError(f"{path} is damaged or was refused: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        return content
    return {
        name: value.float().numpy() if isinstance(value, torch.Tensor) else value
        for name, value in content.items()
    }

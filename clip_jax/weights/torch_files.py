"""torch's .pt files, state dicts and TorchScript archives alike, read without torch."""

import lzma
import mmap
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.weights.state_dicts import find_state_dict
from clip_jax.weights.torch_pickles import Module, Reader, Storage

# What zipfile raises for an archive that is damaged, encrypted or compressed in an unknown way.
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError)  # fmt: skip
# What pickle and NumPy raise besides for bytes that are not what they seem.
DAMAGE = (*DAMAGED_ZIP, KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError,
          MemoryError, RecursionError)  # fmt: skip
MOST_UNPACKED = 256 * 2**20  # bytes of a compressed pickle; one of ten thousand tensors has 2 MB
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before torch 1.6


class TorchFile:
    """The state dict that a .pt file holds. Tensors are read one at a time, from the mapped file.

    Attributes:
      is_torchscript: the file is a TorchScript archive, as OpenAI released its models.

    Raises:
      ValueError: the file is damaged, names code to run, or holds no state dict.
    """

    def __init__(self, path: Path):
        try:
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            is_zip = zipfile.is_zipfile(path)
            self._storages = (_Archive if is_zip else _Stream)(path, self._mapped)
            content = self._storages.content
            self.is_torchscript = isinstance(content, Module)
            self._tensors = _checked(find_state_dict, content, str(path))
            for tensor in self._tensors.values():
                tensor.check(self._storages.count(tensor.storage))
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} was not read: {error}") from error
        except DAMAGE as error:
            if isinstance(error, _NoStateDict):
                raise ValueError(str(error)) from error
            raise ValueError(f"{path} is damaged: {error}") from error

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor, to be copied before the next one is read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            # What was read before need not stay in memory.
            self._mapped.madvise(mmap.MADV_DONTNEED)
        tensor = self._tensors[name]
        return tensor.read(self._storages.read(tensor.storage, tensor.end))


class _NoStateDict(ValueError):
    """A whole file without weights, unlike a damaged one."""


def _checked(find, content: Any, source: str):
    try:
        return find(content, source)
    except ValueError as error:
        raise _NoStateDict(str(error)) from error


class _Archive:
    """The storages of a zip archive, torch's format since 1.6."""

    def __init__(self, path: Path, mapped: mmap.mmap):
        self._path, self._mapped = path, mapped
        self._whole: set[str] = set()  # storages whose checksums are right
        with zipfile.ZipFile(path) as archive:
            self._infos = {info.filename: info for info in archive.infolist()}
            (pickled,) = (name for name in self._infos if name.endswith("/data.pkl"))
            self._folder = pickled.removesuffix("data.pkl")
            order = f"{self._folder}byteorder"
            if order in self._infos:
                with archive.open(order) as file:
                    if file.read(16) != b"little":
                        raise pickle.UnpicklingError("its numbers are big-endian")
            size = self._infos[pickled].file_size
            if size > max(MOST_UNPACKED, len(mapped)):  # torch itself compresses nothing
                raise pickle.UnpicklingError(f"its pickle unpacks to {size / 2**20:,.0f} MiB")
            with archive.open(pickled) as file:
                self.content = Reader(file).load()

    def count(self, storage: Storage) -> int:
        """How many numbers the file really has of a storage."""
        info = self._infos[f"{self._folder}data/{storage.key}"]
        end = 0 if info.compress_type else self._start(info) + info.file_size
        if end > len(self._mapped):
            raise EOFError(f"storage {storage.key} ends after the file does")
        return info.file_size // storage.dtype.itemsize

    def read(self, storage: Storage, count: int) -> np.ndarray:
        """Its numbers, at least the first `count` of them."""
        info = self._infos[f"{self._folder}data/{storage.key}"]
        if info.compress_type != zipfile.ZIP_STORED:
            with zipfile.ZipFile(self._path) as archive, archive.open(info) as member:
                numbers_N = np.frombuffer(
                    member.read(count * storage.dtype.itemsize), storage.dtype
                )
                while member.read(2**20):  # to its end, where the checksum is compared
                    pass
            return numbers_N
        start = self._start(info)
        if storage.key not in self._whole:  # several tensors may lie in one
            with memoryview(self._mapped) as data:
                if zlib.crc32(data[start : start + info.file_size]) != info.CRC:
                    raise zipfile.BadZipFile(f"the checksum of {info.filename} is another one")
            self._whole.add(storage.key)
        return np.frombuffer(self._mapped, storage.dtype, count, start)

    def _start(self, info: zipfile.ZipInfo) -> int:
        # The member's bytes follow its local header, of which only the lengths of two fields vary.
        header = self._mapped[info.header_offset : info.header_offset + 30]
        names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return info.header_offset + 30 + names


class _Stream:
    """The storages of a file from before torch 1.6: five pickles, then the numbers."""

    def __init__(self, path: Path, mapped: mmap.mmap):
        self._mapped = mapped
        if Reader(mapped).load() != MAGIC:
            raise pickle.UnpicklingError("it is a pickle, but not one that torch wrote")
        _version, system = Reader(mapped).load(), Reader(mapped).load()
        if not system["little_endian"]:
            raise pickle.UnpicklingError("its numbers are big-endian")
        reader = _Remembering(mapped)
        self.content = reader.load()
        self._places: dict[str, tuple[int, int]] = {}  # first byte and count
        for key in Reader(mapped).load():
            count = int.from_bytes(mapped.read(8), "little")
            self._places[str(key)] = mapped.tell(), count
            size = count * reader.dtypes[str(key)].itemsize
            if mapped.tell() + size > len(mapped):
                raise EOFError(f"storage {key} ends after the file does")
            mapped.seek(size, 1)

    def count(self, storage: Storage) -> int:
        """How many numbers the file really has of a storage."""
        return self._places[storage.key][1]

    def read(self, storage: Storage, count: int) -> np.ndarray:
        """Its first numbers."""
        return np.frombuffer(self._mapped, storage.dtype, count, self._places[storage.key][0])


class _Remembering(Reader):
    """Keeps the types of all storages, which tell how long each is."""

    def __init__(self, file: mmap.mmap):
        super().__init__(file)
        self.dtypes: dict[str, np.dtype] = {}

    def persistent_load(self, pid: tuple) -> Storage:
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("views of storages, a form of torch 0.1")
        storage = super().persistent_load(pid)
        if not isinstance(storage, Storage):  # of unknown length
            raise pickle.UnpicklingError(f"it holds a {type(storage).__name__}")
        self.dtypes[storage.key] = storage.dtype
        return storage

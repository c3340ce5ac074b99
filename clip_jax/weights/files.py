"""Files of tensors: safetensors in one piece or sharded, NumPy's .npz, torch's .pt."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors

from clip_jax.weights.mapping import Shape, Tensors
from clip_jax.weights.torch_files import TorchFile


def open_tensors(path: Path) -> Tensors:
    """Open a file of tensors by its name's ending.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or of no known kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix not in READERS:
        raise ValueError(f"{path} ends in none of {', '.join(READERS)}")
    return READERS[path.suffix](path)


class Safetensors:
    """A .safetensors file, or all those that an index lists, read without torch."""

    def __init__(self, path: Path):
        files = {path.name}
        if path.suffix == ".json":
            try:
                files = set(json.loads(path.read_text())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is no index of safetensors files") from error
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, Shape] = {}
        for name in sorted(files):
            self._list(path.parent / name, listed_in=path)

    def _list(self, file: Path, *, listed_in: Path):
        if not file.is_file():
            raise FileNotFoundError(f"{listed_in} lists {file}, which is not there")
        try:
            with safetensors.safe_open(file, framework="np") as opened:
                for name in list(opened.keys()):
                    self._file_of[name] = file
                    self._shapes[name] = tuple(opened.get_slice(name).get_shape())
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}") from error

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        # Opened again each time, so that what was read does not stay mapped.
        with safetensors.safe_open(self._file_of[name], framework="np") as opened:
            return opened.get_tensor(name)


class Npz:
    """NumPy's .npz, of plain arrays alone."""

    def __init__(self, path: Path):
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                self._shapes = {
                    name.removesuffix(".npy"): _npy_shape(archive, name) for name in names
                }
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no .npz file of plain arrays: {error}") from error

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        # A pickled array would run code when it is read: NumPy refuses it here once more.
        with zipfile.ZipFile(self._path) as archive, archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _npy_shape(archive: zipfile.ZipFile, name: str) -> Shape:
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = readers[version](member)
    if dtype.hasobject:
        raise ValueError(f'"{name}" is pickled')
    return shape


READERS = {
    ".safetensors": Safetensors,
    ".json": Safetensors,
    ".npz": Npz,
    ".pt": TorchFile,
    ".pth": TorchFile,
    ".bin": TorchFile,
}

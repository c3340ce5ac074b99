"""Files of tensors: safetensors, NumPy's .npz and torch's .pt, detected by their content."""

import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import ml_dtypes
import numpy as np
import safetensors

from clip_jax.storage.json_text import parse_json
from clip_jax.weights.mapping import Shape, Tensors
from clip_jax.weights.state_dicts import unwrap
from clip_jax.weights.torch_files import DAMAGED_ZIP, TorchFile

log = logging.getLogger(__name__)


class NamedTensors:
    """A file's tensors under the names that they have in the model itself.

    Attributes:
      source: what errors call the file.
      is_torchscript: the file is a TorchScript archive, as OpenAI released its models.
      is_npz: the file is NumPy's.
    """

    def __init__(self, tensors: Tensors, source: str):
        self.source = source
        self.is_torchscript = getattr(tensors, "is_torchscript", False)
        self.is_npz = isinstance(tensors, Npz)
        self._tensors, self._has_zeros = tensors, False
        shapes = tensors.shapes()
        self._names = unwrap(shapes, source)
        self._shapes = {name: tuple(shapes[theirs]) for name, theirs in self._names.items()}

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        """A tensor, to be copied before the next one is read.

        Raises:
          ValueError: it is not of floating-point numbers, or one of them is not finite.
        """
        try:
            tensor = self._tensors.read(self._names[name])
        except AttributeError as error:  # of a type that NumPy has not
            kind = str(error).rpartition("attribute ")[2].strip("'")
            raise ValueError(
                f'{self.source}: tensor "{name}" is of type {kind}, which is not read: save plain '
                "floating-point tensors"
            ) from error
        except (
            TypeError,
            OSError,
            safetensors.SafetensorError,
            *DAMAGED_ZIP,
        ) as error:
            raise ValueError(f'{self.source}: tensor "{name}" cannot be read: {error}') from error
        if tensor.dtype.kind != "f" and tensor.dtype != ml_dtypes.bfloat16:
            raise ValueError(
                f'{self.source}: tensor "{name}" holds {tensor.dtype}, not floating-point numbers: '
                "quantised weights are not read"
            )
        if tensor.dtype == np.float64:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and named so
                tensor = tensor.astype(np.float32)
        if not np.isfinite(tensor).all():
            wrong = int(np.size(tensor) - np.isfinite(tensor).sum())
            raise ValueError(
                f'{self.source}: tensor "{name}" has {wrong} of {tensor.size} values that are NaN or '
                "infinite: the training that saved it diverged, or the file is damaged"
            )
        if tensor.ndim > 1 and not self._has_zeros and not tensor.any():
            self._has_zeros = True  # of many, the first is named
            log.warning(
                '%s: tensor "%s" is zero everywhere, as in files of which a part was never downloaded',
                *(self.source, name),
            )
        return tensor


def open_tensors(path: Path) -> NamedTensors:
    """Open a file of tensors; its content tells its format, whatever its name ends in.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or of no known format; the message says what it is.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return NamedTensors(_reader_of(path)(path), str(path))


def path_inside(folder: Path, name: object, *, source: str) -> Path:
    """The path that a file of a folder names there. Where links lead to is the person's own affair.

    Raises:
      ValueError: the name leads out of the folder, or is none; the message has `source`.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"{source} names {name!r:.80}, which is no file in its folder")
    return folder / str(name)


def _reader_of(path: Path) -> Callable[[Path], Tensors]:
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is damaged: the end of its zip archive is missing")
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except DAMAGED_ZIP as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if any(name.endswith("/data.pkl") for name in names):
            return TorchFile
        if names and all(name.endswith(".npy") for name in names):
            return Npz
        raise ValueError(f"{path} is a zip archive of neither torch nor NumPy")
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return Safetensors
    if start.startswith(b"\x80"):
        return TorchFile
    if text.startswith((b"{", b"[")):
        return Sharded
    raise ValueError(f"{path} holds no weights: {_description(path, start, text)}")


def _description(path: Path, start: bytes, text: bytes) -> str:
    if not start:
        return "the file is empty"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; `git lfs pull` fetches the file that it stands for"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is an HTML or XML page, such as a server's error; download the file again"
    for magic, name in MAGIC.items():
        if start.startswith(magic):
            return f"it is {name}, which is not read; known are .safetensors, .pt, .bin and .npz"
    if start[257:262] == b"ustar":
        return "it is a tar archive, torch's format before version 0.1.10; save it again with torch"
    if path.suffix in (".safetensors", ".npz"):
        return f"it is no whole {path.suffix} file; it starts with {start[:16]!r}"
    return f"it is no .safetensors, .pt, .bin or .npz; it starts with {start[:16]!r}"


MAGIC = {
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x08": "perhaps an ONNX or TensorFlow file",
    b"\x81\xa6params": "a msgpack file of Flax",
}


class Safetensors:
    """A .safetensors file, read without torch."""

    def __init__(self, path: Path):
        self._path = path
        try:
            with safetensors.safe_open(path, framework="np") as opened:
                names = list(opened.keys())
                self._shapes = {n: tuple(opened.get_slice(n).get_shape()) for n in names}
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        # Opened again each time, so that what was read does not stay mapped.
        with safetensors.safe_open(self._path, framework="np") as opened:
            return opened.get_tensor(name)


class Sharded:
    """All the files that an index lists, safetensors or torch's."""

    def __init__(self, path: Path):
        try:
            names = sorted(set(parse_json(path.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no index of files of weights: {error!r:.80}") from error
        if not names:
            raise ValueError(f"{path} lists no files")
        self._files: dict[str, Tensors] = {}
        for name in names:
            file = path_inside(path.parent, name, source=str(path))
            if not file.is_file():
                raise FileNotFoundError(f"{path} lists {file}, which is not there")
            reader = _reader_of(file)
            if reader is Sharded:
                raise ValueError(f"{path} lists {file}, which is an index itself")
            self._files[name] = reader(file)
        self._file_of: dict[str, str] = {}
        for name, file in self._files.items():
            for tensor in file.shapes():
                if tensor in self._file_of:
                    raise ValueError(f'{path}: "{tensor}" lies in two of its files')
                self._file_of[tensor] = name

    def shapes(self) -> Mapping[str, Shape]:
        return {name: self._files[file].shapes()[name] for name, file in self._file_of.items()}

    def read(self, name: str) -> np.ndarray:
        return self._files[self._file_of[name]].read(name)


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
        except (ValueError, KeyError, OSError, *DAMAGED_ZIP) as error:
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

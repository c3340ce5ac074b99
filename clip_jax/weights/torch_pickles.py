"""An unpickler for torch's files that builds tensors and containers, and never runs what a file names."""

import collections
import pickle
from typing import Any, NamedTuple

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

# Modules and functions that a file has no honest reason to name. Nothing that a file names is ever
# called, so refusing them protects the tools that would read the file next.
HOSTILE_MODULES = {
    "_posixsubprocess", "asyncio", "bdb", "builtins", "code", "codeop", "commands", "ctypes", "http",
    "importlib", "marshal", "multiprocessing", "nt", "os", "pdb", "pip", "platform", "posix", "pty",
    "pickle", "requests", "runpy", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile",
    "threading", "timeit", "urllib", "webbrowser",
}  # fmt: skip
HARMLESS_BUILTINS = {
    "bytearray", "bytes", "complex", "dict", "float", "frozenset", "getattr", "int", "list", "long",
    "object", "range", "set", "slice", "str", "tuple", "type", "unicode", "xrange",
}  # fmt: skip


class Storage(NamedTuple):
    """Numbers of one type, somewhere in the file."""

    key: str
    dtype: np.dtype


class StoredTensor(NamedTuple):
    """A tensor that has not been read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, numbers_N: np.ndarray) -> np.ndarray:
        """The tensor as a view of its storage's numbers."""
        strides = [stride * numbers_N.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers_N[self.offset :], self.shape, strides, writeable=False
        )

    @property
    def end(self) -> int:
        """The number of its storage's elements up to its last one."""
        if 0 in self.shape:
            return self.offset
        return 1 + self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides))

    def check(self, count: int):
        """Compare with the number of elements that the storage really has."""
        negative = self.offset < 0 or min((*self.shape, *self.strides), default=0) < 0
        if negative or len(self.shape) != len(self.strides) or self.end > count:
            raise pickle.UnpicklingError("a tensor reaches beyond its storage")


class Module(dict):
    """Stands for an object of TorchScript: its attributes, by their names."""

    def __setstate__(self, state: dict):
        self.update(state)


class Inert(dict):
    """Stands for an object of any other class: takes what the pickle gives it, and does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state: Any): ...

    def append(self, item: Any): ...

    def extend(self, items: Any): ...

    def add(self, item: Any): ...

    __hash__ = object.__hash__  # it may be a member of a set


class Reader(pickle.Unpickler):
    """Reads one pickle of a file of torch's."""

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module.startswith("__torch__"):
            return Module
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.split(".")[0] in HOSTILE_MODULES and (
            module != "builtins" or name not in HARMLESS_BUILTINS
        ):
            raise pickle.UnpicklingError(
                f"its pickle asks for {module}.{name}, which could run code; such a file is refused "
                "(save the state dict alone, or as safetensors)"
            )
        return type(f"{module}.{name}", (Inert,), {})

    def persistent_load(self, pid: tuple) -> "Storage | Inert":
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, type):
            raise pickle.UnpicklingError(f"unknown storage {kind!r} of {dtype!r:.40}")
        if issubclass(dtype, Inert):  # of a type that NumPy has not; it may lie beside the weights
            return dtype()
        return Storage(str(key), np.dtype(dtype))


def _tensor(
    storage: Storage | Inert,
    offset: int,
    shape: tuple,
    strides: tuple,
    _grad=None,
    _hooks=None,
    bits=None,
) -> StoredTensor | Inert:
    if isinstance(storage, Inert):
        return storage
    if bits:
        raise pickle.UnpicklingError(
            f"a tensor is stored without {', '.join(map(str, bits))}, which torch applies later: save "
            "tensor.resolve_neg().resolve_conj()"
        )
    return StoredTensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _typed_tensor(_storage, _offset, _shape, _strides, _grad, _hooks, dtype: type, *_) -> Inert:
    """A tensor of one of torch's newer types, such as float8, which is named and not read."""
    return dtype() if issubclass(dtype, Inert) else Inert()


ALLOWED = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("builtins", "range"): range,
    ("builtins", "complex"): complex,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    # A subclass of Tensor: the function that makes the plain one is one of these.
    ("torch._tensor", "_rebuild_from_type_v2"): lambda make, kind, args, state: make(*args),
    ("torch.jit._pickle", "build_intlist"): list,
    ("torch.jit._pickle", "build_doublelist"): list,
    ("torch.jit._pickle", "build_boollist"): list,
    ("torch.jit._pickle", "build_tensorlist"): list,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
}

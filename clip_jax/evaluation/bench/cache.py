"""What a bench keeps on disk: embeddings in parts, vectors of classes, results of tasks."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash
from jax.experimental import multihost_utils

from clip_jax.distributed.multihost import allgather_json
from clip_jax.evaluation.annotations import Annotation
from clip_jax.storage import atomic_write


class Part(NamedTuple):
    """Some samples of a data set in a row: embeddings and annotations of those that can be used."""

    z_NE: np.ndarray
    annotations: list[Annotation]
    bad: list[tuple[str, str]]  # key and reason of the first of the others


class Cache:
    """Files of one model under a folder. Process 0 reads and writes; all get the same.

    An entry is written whole under its name or not at all, and one that is damaged counts as none.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def part(self, data: str, number: int, make: Callable[[], Part]) -> Part:
        """Part `number` of the embeddings of a data set, from the cache or newly made."""
        path = self._folder / data / f"{number:05d}.npz"
        return self._kept(path, _part_of, _part_to, make)

    def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array by its name, from the cache or newly made."""

        def read(arrays: dict[str, np.ndarray]) -> np.ndarray:
            return arrays["x"]

        path = self._folder / f"{name}.npz"
        return self._kept(path, read, lambda array: {"x": array}, make)

    def result(self, name: str) -> dict[str, Any] | None:
        """A result that was kept by its name; None where there is none."""
        found = None
        if jax.process_index() == 0:
            try:
                found = json.loads((self._folder / f"{name}.json").read_text())
            except (OSError, ValueError):
                found = None
        return allgather_json(found)[0]

    def keep_result(self, name: str, result: dict[str, Any]):
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write(self._folder / f"{name}.json", json.dumps(result))

    def _kept(self, path: Path, read: Callable, write: Callable, make: Callable):
        arrays = _load(path) if jax.process_index() == 0 else None
        if allgather_json(arrays is not None)[0]:
            return read(_broadcast(arrays))
        made = make()
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            np.savez(buffer, **write(made))
            atomic_write(path, buffer.getvalue())
        return made


def fingerprint(*parts: object) -> str:
    """Of what a cached value depends on: a digest of anything whose repr says all of it."""
    return xxhash.xxh3_128_hexdigest(repr(parts).encode())


def model_fingerprint(config: Any, variables: Any) -> str:
    """Of a model: of every byte of its variables, and of its config."""
    digest = xxhash.xxh3_128(repr(config).encode())
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _load(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _broadcast(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """The arrays of process 0, in every process."""
    if jax.process_count() == 1:
        assert arrays is not None
        return arrays
    own = arrays or {}
    specs = allgather_json([[k, x.dtype.str, list(x.shape)] for k, x in own.items()])[0]
    found = {}
    for name, dtype, shape in specs:
        # As bytes: a dtype such as int64 would be cut to 32 bits on the way.
        array = own.get(name, np.zeros(shape, dtype))
        data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        sent = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
        found[name] = np.frombuffer(sent.tobytes(), dtype).reshape(shape)
    return found


def _part_to(part: Part) -> dict[str, np.ndarray]:
    notes = json.dumps({"annotations": part.annotations, "bad": part.bad}).encode()
    return {"z": part.z_NE, "notes": np.frombuffer(notes, np.uint8)}


def _part_of(arrays: dict[str, np.ndarray]) -> Part:
    notes = json.loads(arrays["notes"].tobytes())
    annotations = [Annotation.from_json(entry) for entry in notes["annotations"]]
    return Part(arrays["z"], annotations, [tuple(entry) for entry in notes["bad"]])

"""Reads an embedded collection: ours, or the folders that clip-retrieval writes. Vectors stay on the disk."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax.collection.layout import FOLDERS, MANIFEST, METADATA, SETTINGS
from clip_jax.storage.checksums import file_checksum

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
IN_CACHE = 512  # rows that are widened at once: 1 MB of width 512
GATHERED = 8192  # rows of several queries that are read at once: 8 MB of width 512 in 16 bits


class Vectors:
    """The embeddings of one kind, in the order of the source, as memory-mapped parts.

    Attributes:
      parts: (rows, dim) each, float16, bfloat16 or float32.
      first: (parts + 1,) the row of the whole at which each begins, and their number.
    """

    def __init__(self, files: Sequence[Path], dtype: str | None = None):
        self.files = tuple(files)
        self.parts = [_open(file, dtype) for file in files]
        widths = {part.shape[1] for part in self.parts}
        if len(widths) != 1:
            raise ValueError(f"{files[0].parent}: the parts have rows of {sorted(widths)} numbers")
        (self.dim,) = widths
        self.dtype = np.result_type(*{part.dtype for part in self.parts})  # in which all are exact
        # Of the same memory, without what NumPy's class of mapped files does for each slice.
        self._arrays = [part.view(np.ndarray) for part in self.parts]
        self.first = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def chunks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """The vectors in pieces of at most `rows`: the number of the first row, and (rows, dim)."""
        for first, part in zip(self.first, self.parts):
            for start in range(0, len(part), rows):
                yield int(first) + start, part[start : start + rows]

    def read(self, start: int, out_NE: np.ndarray):
        """Copy the rows from `start` on into an array, as many as it has."""
        end = start + len(out_NE)
        for first, part in zip(self.first.tolist(), self.parts):
            low, high = max(start, first), min(end, first + len(part))
            if low < high:
                out_NE[low - start : high - start] = part[low - first : high - first]

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """(N, dim) float32, the vectors of some rows.

        Raises:
          IndexError: there is no such row.
        """
        rows_N = np.asarray(rows_N, np.int64)
        self._check(rows_N)
        return self._read(rows_N).astype(np.float32)

    def scores(self, z_QE: np.ndarray, rows_QK: np.ndarray) -> np.ndarray:
        """(Q, K) float32, the dot products of each query with rows of its own.

        A row is widened to float32 in the cache, and equal rows have equal scores.

        Raises:
          IndexError: there is no such row.
        """
        z_QE, rows_QK = np.asarray(z_QE, np.float32), np.asarray(rows_QK, np.int64)
        self._check(rows_QK)
        score_QK = np.empty(rows_QK.shape, np.float32)
        at_once = max(1, GATHERED // max(1, rows_QK.shape[1]))  # queries whose rows are in memory
        for first in range(0, len(rows_QK), at_once):
            some = slice(first, first + at_once)
            x_QKE = self._read(rows_QK[some].ravel()).reshape(*rows_QK[some].shape, self.dim)
            for z_E, x_KE, score_K in zip(z_QE[some], x_QKE, score_QK[some]):
                for start in range(0, len(x_KE), IN_CACHE):
                    x_CE = x_KE[start : start + IN_CACHE].astype(np.float32)
                    score_K[start : start + IN_CACHE] = np.einsum("ke,e->k", x_CE, z_E)
        return score_QK

    def _check(self, rows: np.ndarray):
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"a row is outside of 0 to {len(self) - 1}")

    def _read(self, rows_N: np.ndarray) -> np.ndarray:
        """(N, dim) as they are stored, of rows in any order."""
        order_N = np.argsort(rows_N, kind="stable")
        out_NE = np.empty((len(rows_N), self.dim), self.dtype)
        out_NE[order_N] = self._gather(rows_N[order_N])
        return out_NE

    def _gather(self, rows_N: np.ndarray) -> np.ndarray:
        """(N, dim) as they are stored, of rows in ascending order: neighbours lie on the same pages."""
        out_NE = np.empty((len(rows_N), self.dim), self.dtype)
        ends = np.searchsorted(rows_N, self.first).tolist()
        for part, first, start, end in zip(self._arrays, self.first.tolist(), ends, ends[1:]):
            if start < end:
                out_NE[start:end] = part[rows_N[start:end] - first]
        return out_NE


class Embeddings:
    """An embedded collection; see `open_embeddings`.

    Attributes:
      root: its folder.
      manifest: what `clip-jax embed` has noted; None where another program wrote the folder.
      vectors: by kind, "image" and "text".
      rows: of each kind, and of the metadata.
    """

    def __init__(self, root: Path, manifest: dict | None):
        self.root, self.manifest = root, manifest
        dtype = manifest["dtype"] if manifest else None
        kinds = manifest["kinds"] if manifest else list(FOLDERS)
        self.vectors: dict[str, Vectors] = {}
        for kind in kinds:
            folder = root / FOLDERS[kind]
            if files := _parts(folder, ".npy"):
                self.vectors[kind] = Vectors(files, dtype)
        if not self.vectors:
            raise ValueError(
                f"{root} holds no embeddings: neither img_emb/*.npy nor text_emb/*.npy"
            )
        self.metadata_files = _parts(root / METADATA, ".parquet")
        lengths = {kind: len(vectors) for kind, vectors in self.vectors.items()}
        if manifest:
            lengths["manifest"] = manifest["rows"]
        if self.metadata_files:
            lengths["metadata"] = sum(
                _parquet(pq.read_metadata, x).num_rows for x in self.metadata_files
            )
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{root}: the numbers of rows differ: {lengths}")
        self.rows = next(iter(lengths.values()))

    @functools.cached_property
    def metadata(self) -> pa.Table:
        """A row for each vector: image_path, caption, key, shard, sample, label where ours."""
        if not self.metadata_files:
            return pa.table({"row": np.arange(self.rows)})
        tables = [_parquet(pq.read_table, file) for file in self.metadata_files]
        return pa.concat_tables(tables, promote_options="default")

    def damage(self) -> str | None:
        """What is wrong with the files, in one phrase, or None where all are as they were written."""
        for part in self.manifest["parts"] if self.manifest else ():
            for name, checksum in part["files"].items():
                if file_checksum(self.root / name) != checksum:
                    return f"{self.root / name} has other bytes than were written"
        return None


def _parquet(read: Callable, file: Path):
    try:
        return read(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def open_embeddings(path: str | os.PathLike) -> Embeddings:
    """Open a folder that `clip-jax embed` or clip-retrieval wrote.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it is not complete, or holds something else.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder of embeddings {root}")
    if (root / MANIFEST).is_file():
        return Embeddings(root, _read_manifest(root / MANIFEST))
    if (root / SETTINGS).is_file():
        raise ValueError(f"{root} is not complete: run the same clip-jax embed again, it resumes")
    return Embeddings(root, None)


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_text())
        missing = {"kinds", "dtype", "rows"} - manifest.keys()
    except (ValueError, AttributeError) as error:  # no JSON, or no object
        raise ValueError(f"{path} is damaged: run the same clip-jax embed again") from error
    if missing:
        raise ValueError(f"{path} has no {min(missing)}: it is none of clip-jax embed")
    return manifest


def _parts(folder: Path, ending: str) -> list[Path]:
    """The parts in a folder, by their numbers."""
    files = [file for file in folder.glob(f"*{ending}") if not file.name.startswith(".")]
    return sorted(files, key=lambda file: (len(file.stem), file.stem))


def _open(file: Path, dtype: str | None) -> np.ndarray:
    """A memory-mapped part. NumPy has no name for bfloat16, and reads it as bytes."""
    try:
        array = np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:  # cut off, or something else
        raise ValueError(f"{file} cannot be read as .npy: embed it again") from error
    if array.ndim != 2:
        raise ValueError(f"{file} has the shape {array.shape}, and must have rows of vectors")
    if dtype == "bfloat16" and array.dtype.itemsize == 2:
        array = array.view(BFLOAT16)
    if array.dtype not in (np.float16, np.float32, np.float64, BFLOAT16):
        raise ValueError(f"{file} holds {array.dtype}, and must hold numbers of a float type")
    return array

"""An index over an embedded collection: exact or approximate search, its metadata, filters."""

import json
import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pyarrow as pa
import xxhash
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.collection.embeddings import Embeddings, Vectors, open_embeddings
from clip_jax.collection.layout import MANIFEST
from clip_jax.config import MeshConfig
from clip_jax.search import approximate
from clip_jax.search.approximate import Graph
from clip_jax.search.exact import CHUNK, ExactSearch, Found, search_rows, unit
from clip_jax.storage import atomic_write, replacing

Method = Literal["auto", "exact", "approximate", "graph"]
FORMAT = "clip_jax index 1"
INDEX, TABLE = "index.json", "metadata.arrow"
RECALL = 0.98  # that an approximate index is to reach
MEMORY_SHARE = 0.5  # of what the devices have free that vectors may take
CPU_NUMBERS = 2**27  # in all vectors, up to which two cores compare them in some 50 ms
ON_HOST = 100_000  # rows that a filter leaves, up to which they are compared one by one
ENDS = 2**16  # bytes at both ends of a file, by which it is known where there is no manifest
MOST_CANDIDATES = 20_000  # of a search whose results are filtered afterwards


class SearchIndex:
    """Finds the rows of a collection that are nearest to a vector.

    Attributes:
      embeddings: the collection.
      kind: whose vectors are searched, "image" or "text".
      info: what was noted when it was built; method and rows at least.
      table: the metadata, a row for each vector.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        kind: str,
        info: dict,
        table: pa.Table,
        search: Callable[[np.ndarray, int], Found],
    ):
        self.embeddings, self.kind, self.info, self.table = embeddings, kind, info, table
        self.vectors: Vectors = embeddings.vectors[kind]
        self._search = search

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, z: np.ndarray, k: int, *, allowed_N: np.ndarray | None = None) -> Found:
        """The `k` nearest rows of each query.

        Args:
          z: (E,) or (queries, E) vectors; they are brought to unit length.
          k: how many, of each.
          allowed_N: (rows,) bool; others are not found. All that are found satisfy it, and there
            are `k` of them where so many are allowed.

        Returns:
          `Found(score_QK, row_QK)`, float32 cosines and int64 numbers of rows, the best first; for
          one vector without the first axis. Where there are fewer rows, -inf and -1.

        Raises:
          ValueError: the vectors have another width, no direction, or numbers that are not finite;
            `allowed_N` is no mask of the rows.
        """
        z_QE, k = np.atleast_2d(np.asarray(z, np.float32)), operator.index(k)
        if z_QE.ndim != 2 or z_QE.shape[1] != self.vectors.dim or k < 1:
            raise ValueError(
                f"a search takes vectors of {self.vectors.dim} numbers and k of at least 1; given "
                f"were an array of shape {np.shape(z)} and k={k}"
            )
        if not np.isfinite(z_QE).all():
            raise ValueError("a vector to search for has numbers in it that are not finite")
        if not z_QE.any(axis=1).all():
            raise ValueError("a vector to search for is zero: it has no direction")
        if allowed_N is not None and (allowed_N.shape, allowed_N.dtype) != ((len(self),), bool):
            raise ValueError(f"allowed_N must be {len(self):_} truth values, one for each row")
        if not len(z_QE):
            return Found(np.zeros((0, k), np.float32), np.zeros((0, k), np.int64))
        z_QE = unit(z_QE)
        found = self._search(z_QE, k) if allowed_N is None else self._allowed(z_QE, k, allowed_N)
        return Found(*(array[0] for array in found)) if np.ndim(z) == 1 else found

    def _allowed(self, z_QE: np.ndarray, k: int, allowed_N: np.ndarray) -> Found:
        """Candidates are taken until enough are allowed; few allowed rows are all compared."""
        rows_N = np.flatnonzero(allowed_N)
        if len(rows_N) <= ON_HOST:
            return search_rows(self.vectors, rows_N, z_QE, k)
        candidates = int(2 * k * len(self) / len(rows_N))
        while candidates <= MOST_CANDIDATES:
            found = self._search(z_QE, candidates)
            passed_QK = (found.row_QK >= 0) & allowed_N[found.row_QK]
            if (passed_QK.sum(axis=1) >= k).all():
                # A stable sort brings those that pass to the front, in their order.
                at_QK = np.argsort(~passed_QK, axis=1, kind="stable")[:, :k]
                return Found(*(np.take_along_axis(array, at_QK, 1) for array in found))
            candidates *= 4
        return search_rows(self.vectors, rows_N, z_QE, k)

    def rows(self, row_K: Sequence[int] | np.ndarray) -> list[dict]:
        """The metadata of some rows."""
        return self.table.take(pa.array(np.asarray(row_K, np.int64))).to_pylist()

    def results(self, found: Found) -> list[dict]:
        """What one query found: metadata with "row" and "score", which win over columns so named."""
        known_K = found.row_QK >= 0
        numbers, scores = found.row_QK[known_K].tolist(), found.score_QK[known_K].tolist()
        return [
            row | {"row": number, "score": score}
            for row, number, score in zip(self.rows(numbers), numbers, scores)
        ]

    def measure(self, z_QE: np.ndarray, k: int = 10) -> float:
        """The share of the exact `k` nearest rows that this index finds."""
        exact = ExactSearch(self.vectors, local_mesh(), resident=False)
        return approximate.recall(self.search(z_QE, k), exact.search(unit(z_QE), k).score_QK)


def local_mesh() -> Mesh:
    """All devices of this process."""
    return sharding.make_mesh(MeshConfig(), jax.local_devices())


def fits_devices(vectors: Vectors) -> bool:
    """Whether the vectors fit into the free memory of the devices, and are compared quickly there."""
    numbers = len(vectors) * vectors.dim
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return numbers <= CPU_NUMBERS
    free = [device.memory_stats() or {} for device in devices]
    room = sum(each.get("bytes_limit", 0) - each.get("bytes_in_use", 0) for each in free)
    return numbers * min(4, vectors.dtype.itemsize) <= MEMORY_SHARE * room


# ------------------------------------------------------------------------------------ building


def build_index(
    embeddings: str | os.PathLike,
    out: str | os.PathLike,
    *,
    kind: str | None = None,
    method: Method = "auto",
    target: float = RECALL,
    graph: Graph | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict:
    """Build an index of an embedded collection.

    Args:
      embeddings: a folder of `clip-jax embed` or of clip-retrieval.
      out: the folder of the index, of which the embeddings are a part that is not copied.
      kind: whose vectors are searched, "image" or "text"; None: images if there are any.
      method: "exact" compares all rows with each query, "approximate" codes of them, and "graph"
        walks from row to row; "auto" is exact where the vectors fit the devices, else approximate.
      target: of recall@10 of an index that is not exact. Candidates are added until it is reached.
      graph: how a graph is built.
      report: is told how far it is.

    Returns:
      What is noted in index.json.

    Raises:
      ValueError, FileNotFoundError: the embeddings cannot be used.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"recall={target:g} must be from 0 to 1")
    opened, folder = open_embeddings(embeddings), Path(out).expanduser()
    kind = kind or next(iter(opened.vectors))
    if kind not in opened.vectors:
        raise ValueError(f"{opened.root} has no {kind} vectors; it has {', '.join(opened.vectors)}")
    vectors = opened.vectors[kind]
    if not len(vectors):
        raise ValueError(f"{opened.root} has no rows to search")
    check_lengths(vectors)
    if method == "auto":
        method = "exact" if fits_devices(vectors) else "approximate"
    kind_of_index = approximate.KINDS.get(method)
    if kind_of_index and len(vectors) < kind_of_index.least_rows:
        report(f"{len(vectors):_} rows are too few for codes: the index is exact")
        method = "exact"
    if method != "exact":
        approximate.load(method)  # before an older index is gone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # until all files are those of the new one
    info = {
        "format": FORMAT,
        "embeddings": os.path.relpath(opened.root, folder),
        "fingerprint": fingerprint(opened),
        "kind": kind,
        "method": method,
        "rows": len(vectors),
        "dim": vectors.dim,
    }
    if method != "exact":
        info |= approximate.build(
            method,
            opened,
            vectors,
            folder,
            exact=ExactSearch(vectors, local_mesh(), resident=False),
            target=target,
            settings=[graph] if graph and method == "graph" else None,
            report=report,
        )
    for other, each in approximate.KINDS.items():
        if other != method:
            (folder / each.file).unlink(missing_ok=True)
    write_table(opened.metadata, folder / TABLE)
    atomic_write(folder / INDEX, json.dumps(info, indent=1) + "\n")
    return info


def check_lengths(vectors: Vectors):
    """Refuse vectors that are not of unit length, whose dot products are no cosines.

    All are read: among a million one that is not finite would never be found, or spoil a graph.

    Raises:
      ValueError: some are not.
    """
    for first, part_NE in vectors.chunks(CHUNK):
        length_N = np.linalg.norm(np.asarray(part_NE, np.float32), axis=1)
        wrong_N = ~(np.abs(length_N - 1) < 0.02)
        if wrong_N.any():
            row = first + int(np.argmax(wrong_N))
            raise ValueError(
                f"{vectors.files[0].parent}: row {row} has the length {length_N[wrong_N][0]:.3g}, "
                "and vectors must have length 1: divide each by its length"
            )


def fingerprint(opened: Embeddings) -> str:
    """A checksum of the manifest; where there is none, of the files' sizes and their first and last bytes.

    Vectors of another model have the same sizes.
    """
    manifest = opened.root / MANIFEST
    if manifest.is_file():
        return xxhash.xxh3_128_hexdigest(manifest.read_bytes())
    digest = xxhash.xxh3_128()
    vectors = [path for one in opened.vectors.values() for path in one.files]
    for path in (*vectors, *opened.metadata_files):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read(ENDS))
    return digest.hexdigest()


def write_table(table: pa.Table, path: Path):
    """Write metadata so that it can be mapped into memory. A reader never sees half of it."""
    with (
        replacing(path) as partial,
        pa.ipc.new_file(os.fspath(partial), table.schema) as writer,
    ):
        writer.write_table(table.combine_chunks())


# ------------------------------------------------------------------------------------- opening


def open_index(path: str | os.PathLike, *, kind: str | None = None) -> SearchIndex:
    """Open an index, or embeddings alone, which are then searched exactly.

    Args:
      path: a folder of `clip-jax index`, `clip-jax embed` or clip-retrieval.
      kind: of embeddings, whose vectors are searched; None: images if there are any.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: the embeddings were changed after the index was built, or are not complete.
    """
    folder = Path(path).expanduser()
    if not (folder / INDEX).is_file():
        files = (TABLE, *(kind.file for kind in approximate.KINDS.values()))
        if any(any(folder.glob(f"*{name}*")) for name in files):
            raise ValueError(
                f"{folder} was not built to its end: run the same clip-jax index again"
            )
        opened = open_embeddings(folder)
        kind = kind or next(iter(opened.vectors))
        if kind not in opened.vectors:
            raise ValueError(f"{folder} has no {kind} vectors")
        if not opened.rows:
            raise ValueError(f"{folder} has no rows to search")
        check_lengths(opened.vectors[kind])
        info = {"method": "exact", "rows": opened.rows, "kind": kind}
        return SearchIndex(opened, kind, info, opened.metadata, _exact(opened.vectors[kind]))
    info = _read_info(folder)
    opened = open_embeddings(os.path.normpath(folder / info["embeddings"]))
    if fingerprint(opened) != info["fingerprint"]:
        raise ValueError(f"{opened.root} has changed since {folder} was built: build it again")
    if info["kind"] not in opened.vectors:
        raise ValueError(f"{opened.root} has no {info['kind']} vectors: build the index again")
    vectors = opened.vectors[info["kind"]]
    if info["method"] != "exact":
        search = approximate.open_search(info, folder, vectors).search
    else:
        search = _exact(vectors)
    return SearchIndex(opened, info["kind"], info, _read_table(folder, opened.rows), search)


def _read_info(folder: Path) -> dict:
    try:
        info = json.loads((folder / INDEX).read_text())
        found = info.get("format")
    except (ValueError, AttributeError) as error:  # no JSON, or no object
        raise ValueError(f"{folder / INDEX} is damaged: build the index again") from error
    if found != FORMAT:
        raise ValueError(f"{folder} is an index of format {found!r}, not {FORMAT!r}")
    missing = {"embeddings", "fingerprint", "kind", "method"} - info.keys()
    if missing or info["method"] not in ("exact", *approximate.KINDS):
        what = f"no {min(missing)}" if missing else f"an unknown method, {info['method']!r}"
        raise ValueError(f"{folder / INDEX} has {what}: build the index again")
    return info


def _read_table(folder: Path, rows: int) -> pa.Table:
    """The metadata, mapped into memory."""
    try:
        table = pa.ipc.open_file(pa.memory_map(os.fspath(folder / TABLE))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{folder / TABLE} cannot be read: build the index again") from error
    if len(table) != rows:
        raise ValueError(f"{folder / TABLE} has not {rows:_} rows: build the index again")
    return table


def _exact(vectors: Vectors) -> Callable[[np.ndarray, int], Found]:
    """On the devices where the vectors fit, else read from the disk for each search."""
    return ExactSearch(vectors, local_mesh(), resident=fits_devices(vectors)).search

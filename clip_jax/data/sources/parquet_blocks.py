"""Row groups of Parquet files out of the bytes of their columns, fetched in one piece."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax import storage
from clip_jax.data.block_cache import Span
from clip_jax.data.block_order import Blocks
from clip_jax.data.samples import BadSample, Sample
from clip_jax.data.sources import image_files
from clip_jax.data.sources.parquet_files import DamagedGroup, or_damaged
from clip_jax.data.sources.ranged_file import RangedFile


class _Piece(RangedFile):
    """A file of which some bytes are there; others are not asked for by who knows the footer."""

    def __init__(self, start: int, data: bytes | bytearray, size: int):
        super().__init__(size)
        self._start, self._data = start, memoryview(data)

    def bytes_at(self, start: int, end: int) -> bytes:
        first, last = start - self._start, end - self._start
        if not 0 <= first <= last <= len(self._data):
            raise ValueError(f"bytes {start} to {end} are not among those that were fetched")
        return bytes(self._data[first:last])


class GroupBlocks:
    """The row groups of several files as blocks.

    Args:
      paths: the files.
      metadata: of each, what its footer says.
      groups_G2: file, and number in it, of each row group.
      first_G: the first row of each, and of all.
      names: the columns that are wanted.
    """

    def __init__(
        self,
        paths: Sequence[str],
        metadata: Sequence[pq.FileMetaData],
        groups_G2: np.ndarray,
        first_G: np.ndarray,
        names: Sequence[str],
    ):
        self._paths, self._metadata, self._names = tuple(paths), tuple(metadata), list(names)
        self._groups_G2, self._first_G = groups_G2, first_G
        self._infos = storage.stat(paths)

    @property
    def blocks(self) -> Blocks:
        """All of them."""
        sizes = [self._bytes(file, group) for file, group in self._groups_G2.tolist()]
        mean = float(np.mean([end - start for start, end in sizes] or [0]))
        return Blocks(self._first_G.astype(np.int64), mean)

    def span(self, row: int) -> Span:
        """Where the columns of a row's group are."""
        file, group = self._of(row)
        return Span(self._paths[file], *self._bytes(file, group), self._infos[file])

    def unpack(self, row: int, data: bytes | bytearray) -> pa.Table | DamagedGroup:
        """The row group of a row, of the bytes of its span."""
        file, group = self._of(row)
        path, start, _, info = self.span(row)
        piece = pa.PythonFile(_Piece(start, data, info.size), mode="r")

        def read() -> pa.Table:
            opened = pq.ParquetFile(piece, metadata=self._metadata[file])
            return opened.read_row_group(group, self._names)

        try:
            return or_damaged(read, path, group)
        except DamagedGroup as error:
            return error

    def _of(self, row: int) -> tuple[int, int]:
        place = int(np.searchsorted(self._first_G, row, side="right")) - 1
        file, group = self._groups_G2[place].tolist()
        return file, group

    def _bytes(self, file: int, group: int) -> tuple[int, int]:
        row_group, spans = self._metadata[file].row_group(group), []
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            if column.path_in_schema.split(".")[0] in self._names:
                start = column.data_page_offset
                if column.has_dictionary_page and column.dictionary_page_offset:
                    start = min(start, column.dictionary_page_offset)
                spans.append((start, start + column.total_compressed_size))
        return min(start for start, _ in spans), max(end for _, end in spans)


class GroupRun:
    """Samples of a row group that is in memory."""

    def __init__(self, sample: Callable[..., Sample], table: pa.Table | DamagedGroup):
        self._sample, self._table = sample, table

    def __getitem__(self, index: int) -> Sample:
        return self._sample([index], self._table)


def image_of(value, path: str, key: str, shard: str) -> tuple[bytes, str | None]:
    """The encoded file, and its path, out of bytes, a path, or Hugging Face's struct of both."""
    value = image_value(value)
    if not value:
        raise BadSample("missing-image", key=key, shard=shard)
    if isinstance(value, bytes):
        return value, None
    if not isinstance(value, str):
        raise BadSample("not-an-image", key=key, shard=shard)
    file = image_files.beside(value, path)
    return image_files.read_image(file, key=f"{key} {file[:200]}", shard=shard), file


def image_value(value):
    """What stands in a row for an image: Hugging Face has bytes and a path, of which one may be missing."""
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value

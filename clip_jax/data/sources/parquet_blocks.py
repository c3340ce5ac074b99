"""Row groups of Parquet files out of the bytes of their columns, fetched in one piece."""

import io
import os
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax import storage
from clip_jax.data.samples import BadSample, Sample
from clip_jax.data.sources.image_files import read_image


class DamagedGroup(ValueError):
    """A row group whose bytes can be read and are not what was written."""


class _Piece(io.RawIOBase):
    """A file of which some bytes are there; others are not asked for by who knows the footer."""

    def __init__(self, start: int, data: bytes, size: int):
        self._start, self._data, self._size, self._place = start, memoryview(data), size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._place + size)
        first, last = self._place - self._start, end - self._start
        if not 0 <= first <= last <= len(self._data):
            raise ValueError(f"bytes {self._place} to {end} are not among those that were fetched")
        self._place = end
        return bytes(self._data[first:last])


def span_of(metadata: pq.FileMetaData, group: int, names: Sequence[str]) -> tuple[int, int]:
    """The bytes between which the columns of these names lie in a row group."""
    row_group, spans = metadata.row_group(group), []
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        if column.path_in_schema.split(".")[0] in names:
            start = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset:
                start = min(start, column.dictionary_page_offset)
            spans.append((start, start + column.total_compressed_size))
    return min(start for start, _ in spans), max(end for _, end in spans)


def read_group(
    metadata: pq.FileMetaData, group: int, names: Sequence[str], start: int, data: bytes, size: int
) -> pa.Table:
    """A row group of a file of `size` bytes, of the bytes of its span, which begins at `start`."""
    piece = pa.PythonFile(_Piece(start, data, size), mode="r")
    return pq.ParquetFile(piece, metadata=metadata).read_row_group(group, list(names))


def checked(read: Callable[[], pa.Table], path: str, number: int) -> pa.Table:
    """What `read` gives; DamagedGroup where Arrow can make no sense of the bytes."""
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        # Arrow says OSError also of bytes that it cannot make sense of, but without a number.
        damaged = isinstance(error, pa.ArrowException) and not isinstance(error, MemoryError)
        if damaged or (type(error) is OSError and not error.errno):
            raise DamagedGroup(f"{path}, row group {number}: {error}") from error
        raise


class GroupRun:
    """Samples of a row group that is in memory; None: it is damaged."""

    def __init__(self, sample: Callable[..., Sample], table: pa.Table | None):
        self._sample, self._table = sample, "damaged" if table is None else table

    def __getitem__(self, index: int) -> Sample:
        return self._sample([index], self._table)


def image_of(value, path: str, key: str, shard: str) -> bytes:
    """The encoded file out of bytes, a path, or the struct of both that Hugging Face writes."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise BadSample("missing-image", key=key, shard=shard)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise BadSample("not-an-image", key=key, shard=shard)
    if not storage.is_url(value) and not os.path.isabs(value):
        value = f"{path.rpartition('/')[0] or '.'}/{value}"
    return read_image(value, key=f"{key} {value}", shard=shard)

"""Opens Parquet files, on a disk or behind a URL, and tells damage from a storage that fails."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from clip_jax import storage
from clip_jax.data.sources import tar_members
from clip_jax.data.sources.ranged_file import RangedFile

T = TypeVar("T")


class DamagedGroup(ValueError):
    """A row group whose bytes can be read and are not what was written."""


class Row(NamedTuple):
    """What stands in a row."""

    image: object
    texts: list[list[str]]  # by caption column
    label: int | None
    path: str
    key: str


class Head(NamedTuple):
    """What the footer of a file says."""

    schema: pa.Schema
    rows: list[int]  # of each row group
    sizes: list[int]  # bytes of each row group
    metadata: pq.FileMetaData


class WebFile(RangedFile):
    """A file of a web server, of which each range is checked to be the one that was asked for."""

    def __init__(self, url: str):
        try:
            (self._info,) = storage.stat([url])
        except FileNotFoundError as error:  # whoever opens this is not to try it all again
            raise storage.Refused(str(error)) from error
        super().__init__(self._info.size)
        self._url = url

    def bytes_at(self, start: int, end: int) -> bytes:
        return storage.read_range(self._url, start, end, info=self._info)


def head(path: str) -> Head:
    """Of a file the schema, and of its row groups the rows and the bytes."""
    file = storage.retry(lambda: open_file(path), path)
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    sizes = [group.total_byte_size for group in groups]
    return Head(file.schema_arrow, rows, sizes, file.metadata)


def open_file(path: str) -> pq.ParquetFile:
    try:
        if storage.is_web(path):
            return pq.ParquetFile(WebFile(path))
        if storage.is_url(path):
            filesystem, name = fsspec.core.url_to_fs(path)
            return pq.ParquetFile(name, filesystem=filesystem)
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        start = storage.read_range(path, 0, 512)
        why = tar_members.what_it_is(start) if start[:4] != b"PAR1" else None
        raise ValueError(f"{path} {why or f'is not a whole Parquet file: {error}'}") from error


def first_rows(path: str, names: list[str], count: int) -> list[dict]:
    """Some columns of the first rows; none of a file that is damaged there."""

    def read() -> pa.RecordBatch | None:
        return next(open_file(path).iter_batches(count, columns=names), None)

    try:
        batch = or_damaged(read, path, 0)
    except DamagedGroup:
        return []  # bad samples, which are counted when they are read
    return [] if batch is None else batch.to_pylist()


def read_group(path: str, number: int, names: list[str]) -> pa.Table:
    return or_damaged(lambda: open_file(path).read_row_group(number, names), path, number)


def or_damaged(read: Callable[[], T], path: str, number: int) -> T:
    """What `read` makes of a row group; DamagedGroup where its bytes are not what was written."""
    try:
        return read()
    except (pa.ArrowException, OSError) as error:
        # Arrow says OSError also of bytes that it cannot make sense of, but without a number.
        damaged = isinstance(error, pa.ArrowException) and not isinstance(error, MemoryError)
        if damaged or (type(error) is OSError and not error.errno):
            raise DamagedGroup(f"{path}, row group {number}: {error}") from error
        raise

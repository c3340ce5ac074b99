"""Where the chunks of an ArrayRecord file lie, and records out of a piece of the file.

The format is Riegeli's (github.com/google/riegeli, doc/riegeli_records_file_format.md), with a footer of
ArrayRecord's: the last 64 KiB hold a postscript with the place of the footer, and the footer has offset
and number of records of each chunk. The records themselves are taken out by ArrayRecord's own reader,
which checks their hashes: it is given a file of the right length that has but the piece and the footer.
"""

import os
import tempfile
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from clip_jax import storage

BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40  # bytes
NONE, ZSTD = b"\0", b"z"  # kinds of compression


class Layout(NamedTuple):
    """The chunks of a file."""

    offset_C: np.ndarray  # the byte at which each begins, and at which the footer does
    first_C: np.ndarray  # the first record of each, and of all


def not_whole(path: str) -> ValueError:
    """What is said of a file that is no ArrayRecord, or a damaged one."""
    return ValueError(
        f"{path} is not a whole ArrayRecord file (TFRecord is not read): make it again"
    )


def read_tail(path: str, info: storage.FileInfo) -> tuple[int, bytes]:
    """Where the footer of a file begins, and the bytes from there to its end."""
    start = info.size - BLOCK
    if start < 0 or start % BLOCK:
        raise not_whole(path)
    tail = storage.read_range(path, start, info.size, info=info)
    try:
        (record, *_), _ = _records(tail, 0, start)
        footer = _fields(record)[1]
    except (KeyError, IndexError, ValueError) as error:
        raise not_whole(path) from error
    if not 0 < footer < start:
        raise not_whole(path)
    return footer, storage.read_range(path, footer, start, info=info) + tail


def parse_layout(footer: int, tail: bytes) -> Layout:
    """The chunks that a footer, which begins at byte `footer`, names."""
    (_, *records), _ = _records(tail, 0, footer)
    fields = [_fields(record) for record in records]
    counts = [found.get(3, 0) for found in fields]
    offsets = [found[1] for found in fields]
    return Layout(np.array([*offsets, footer], np.int64), np.cumsum([0, *counts]))


def read_records(
    size: int,
    start: int,
    data: bytes | bytearray,
    footer: int,
    tail: bytes,
    records: range,
) -> list[bytes | None]:
    """Some records of a file of `size` bytes, of which `data` lies at byte `start`; None: damaged."""
    with (
        tempfile.TemporaryFile()
        if not hasattr(os, "memfd_create")
        else os.fdopen(os.memfd_create("records", os.MFD_CLOEXEC), "wb") as file
    ):
        os.ftruncate(file.fileno(), size)  # what is not written takes no memory
        os.pwrite(file.fileno(), data, start)
        os.pwrite(file.fileno(), tail, footer)
        reader = ArrayRecordReader(f"/dev/fd/{file.fileno()}")
        try:
            return _read_each(reader, records)
        finally:
            reader.close()


def _read_each(reader: ArrayRecordReader, records: range) -> list[bytes | None]:
    try:
        return list(reader.read(records.start, records.stop))
    except Exception:  # the C++ library's errors have no type of their own: which record is it?
        if len(records) == 1:
            return [None]
        middle = len(records) // 2
        return _read_each(reader, records[:middle]) + _read_each(reader, records[middle:])


def _records(data: bytes, place: int, start: int) -> tuple[list[bytes], int]:
    """The records of the chunk at byte `place` of `data`, which is at byte `start` of its file."""
    if (start + place) % BLOCK == 0:
        place += BLOCK_HEADER
    header = data[place : place + CHUNK_HEADER]
    if header[24:25] != b"r":
        raise ValueError("no chunk of records")
    left, parts, place = int.from_bytes(header[8:16], "little"), [], place + CHUNK_HEADER
    while left:
        if (start + place) % BLOCK == 0:
            place += BLOCK_HEADER
        size = min(left, BLOCK - (start + place) % BLOCK)
        parts.append(data[place : place + size])
        place, left = place + size, left - size
    content = b"".join(parts)
    kind, (length, at) = content[:1], _varint(content, 1)
    sizes = _decompress(kind, content[at : at + length])
    values = _decompress(kind, content[at + length :])
    records, begin, at = [], 0, 0
    while at < len(sizes):
        size, at = _varint(sizes, at)
        records.append(values[begin : begin + size])
        begin += size
    return records, place


def _decompress(kind: bytes, data: bytes) -> bytes:
    if kind == NONE:
        return data
    if kind != ZSTD:
        raise ValueError(f"compression {kind!r} of the footer is not known")
    # An extra, which files of `clip-jax data convert` do not need.
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ImportError(
            "compressed ArrayRecord files behind URLs need pyarrow: pip install -e '.[parquet]'"
        ) from error
    size, at = _varint(data, 0)
    return pyarrow.decompress(data[at:], decompressed_size=size, codec="zstd", asbytes=True)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number, and the byte after it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _fields(record: bytes) -> dict[int, int]:
    """The numbers of a protocol buffer by their fields; of others the last one's are left out."""
    found, place = {}, 0
    while place < len(record):
        key, place = _varint(record, place)
        if key & 7:
            break  # a text or the like, behind what is wanted
        found[key >> 3], place = _varint(record, place)
    return found

"""Reads tar headers, past long names and past damage."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
ZEROS = bytes(BLOCK)
MOST_EXTRA = 1 << 20  # bytes of a long name; more is damage


class Member(NamedTuple):
    """A file in a tar."""

    start: int  # byte at which its headers start
    name: str
    data: int  # byte at which its content starts
    size: int  # bytes of content

    @property
    def end(self) -> int:
        """The byte after its last block."""
        return self.data + -(-self.size // BLOCK) * BLOCK


def members(
    read: Callable[[int, int], bytes],
    start: int,
    end: int,
    *,
    on_damage: Callable[[int], None] | None = None,
) -> Iterator[Member]:
    """The regular files whose headers lie between bytes `start` and `end`.

    `read(first, last)` gives bytes. A header that is zeroed or damaged is passed by looking for
    the next block that is a good one; tarfile would take a zeroed one for the end and be silent.
    `on_damage` is told where. The file after a damaged long name is passed over, since its own
    header has but a part of the name.
    """
    place, first, long_name, long_size, nameless = start, None, None, None, False
    while place + BLOCK <= end:
        block = read(place, place + BLOCK)
        header = _parse(block)
        if header is None:
            resumed = _next_header(read, place + BLOCK, end)
            # Zeros to the end are how a tar ends; anything else behind them is lost content.
            if on_damage is not None and (resumed is not None or block != ZEROS):
                on_damage(place)
            if resumed is None:
                return
            place, first, long_name, long_size, nameless = resumed, None, None, None, False
            continue
        name, size, kind = header
        first = place if first is None else first
        data = place + BLOCK
        if kind in b"Lx":  # a name that is too long for the header, from GNU tar or pax
            extra = read(data, data + min(size, MOST_EXTRA))
            try:
                long_name, long_size = _long(kind, extra, size, long_name, long_size)
            except ValueError:
                nameless = True
                if on_damage is not None:
                    on_damage(place)
            place = data + -(-size // BLOCK) * BLOCK
            continue
        size = size if long_size is None else long_size
        member = Member(first, long_name or name, data, size)
        is_named = not nameless
        place, first, long_name, long_size, nameless = member.end, None, None, None, False
        if kind in REGULAR and is_named:
            yield member


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension as webdataset has them: the name up to its first dot, and the rest."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not extension:
        return None
    return folder + slash + stem, extension.lower()


def _parse(block: bytes) -> tuple[str, int, bytes] | None:
    """Name, size and kind out of a header, None where the block is none."""
    if len(block) < BLOCK or block[0] == 0:
        return None
    try:
        checksum = _number(block[148:156])
        size = _number(block[124:136])
    except ValueError:
        return None
    if size < 0 or checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape"), size, block[156:157]


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU tar's way to write sizes above 8 GiB
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    return int(field.strip(b" \0") or b"0", 8)


def _long(
    kind: bytes, extra: bytes, size: int, name: str | None, member_size: int | None
) -> tuple[str | None, int | None]:
    """Name and size of the next member, which are too long for its header; ValueError: damage."""
    if len(extra) < size:
        raise ValueError("cut off, or too long to be a name")
    if kind == b"L":
        return extra.rstrip(b"\0").decode("utf-8", "surrogateescape"), member_size
    records = _pax_records(extra)
    if "size" in records:
        member_size = int(records["size"])
        if member_size < 0:
            raise ValueError("a size below zero")
    return records.get("path", name), member_size


def _pax_records(data: bytes) -> dict[str, str]:
    records = {}
    while data and data[:1] != b"\0":
        digits = data.partition(b" ")[0]
        length = int(digits)
        if not len(digits) + 1 < length <= len(data) or data[length - 1 : length] != b"\n":
            raise ValueError("a record of another length")
        key, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def _next_header(read: Callable[[int, int], bytes], place: int, end: int) -> int | None:
    chunk = 1 << 20
    while place + BLOCK <= end:
        data = read(place, min(place + chunk, end))
        if len(data) < BLOCK:
            return None
        for offset in range(0, len(data) - BLOCK + 1, BLOCK):
            # The magic first, because a checksum over pixels would fit now and then.
            if data[offset + 257 : offset + 262] == b"ustar" and _parse(
                data[offset : offset + BLOCK]
            ):
                return place + offset
        place += len(data) // BLOCK * BLOCK
    return None

"""Reads tar headers, past long names and past damage."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from clip_jax.data.images.formats import EXTENSIONS

BLOCK = 512
REGULAR = (b"0", b"\0", b"7")
LINKS = (b"1", b"2")  # to other members; they have no bytes, so that their samples count as bad
ZEROS = bytes(BLOCK)
MOST_EXTRA = 1 << 20  # bytes of a long name; more is damage
NO_TARS = (
    (b"\x1f\x8b", "is compressed with gzip: decompress it, since it is read at random"),
    (b"bzh", "is compressed with bzip2: decompress it, since it is read at random"),
    (b"\xfd7zxz", "is compressed with xz: decompress it, since it is read at random"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: decompress it, since it is read at random"),
    (b"\x04\x22\x6d\x18", "is compressed with lz4: decompress it, since it is read at random"),
    (b"pk\x03\x04", "is a zip archive, as Excel's files are too: unpack or export it"),
    (b"par1", "is a Parquet file: read it with parquet:"),
    (b"version https://git-lfs", "is a pointer of Git LFS: fetch the file with `git lfs pull`"),
    (b"<!doctype", "is a web page, which a server sent in place of the file: download it again"),
    (b"<html", "is a web page, which a server sent in place of the file: download it again"),
    (b"<?xml", "is an XML answer of a server in place of the file: download it again"),
)


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
    """The regular files, and links as files without bytes, whose headers lie between bytes `start` and `end`.

    `read(first, last)` gives bytes. A header that is zeroed or damaged is passed by looking for
    the next block that is a good one; tarfile would take a zeroed one for the end and be silent.
    `on_damage` is called with the position. The file after a damaged long name is passed over, since its own
    header has but a part of the name.
    """
    place, first, long_name, long_size, nameless = start, None, None, None, False
    while place + BLOCK <= end:
        block = read(place, place + BLOCK)
        header = _parse(block)
        if header is None:
            after = _zeros_end(read, place, end) if block == ZEROS else place
            if after + BLOCK > end and after > place:
                return  # zeros to the end are how a tar ends
            if after > place + BLOCK and _parse(read(after, after + BLOCK)) is not None:
                place, first, long_name, long_size, nameless = after, None, None, None, False
                continue  # another archive, appended to the first
            resumed = _next_header(read, place + BLOCK, end)
            if on_damage is not None:
                on_damage(after if resumed is None else place)
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
        member = Member(first, long_name or name, data, 0 if kind in LINKS else size)
        is_named = not nameless
        place, first, long_name, long_size, nameless = member.end, None, None, None, False
        if kind in (*REGULAR, *LINKS) and is_named:
            yield member


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension as webdataset has them: the name up to its first dot, and the rest."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or not extension:
        return None
    return folder + slash + stem, extension.lower()


def split_samples(run: Sequence[tuple[str, int]]) -> list[tuple[int, set[str]]]:
    """The samples among members that lie side by side and have one name up to the first dot.

    They are one sample, as webdataset has it, but for two cases in which pairs would be lost: an
    extension comes again, as when names repeat, or the names go on behind the first dot, as in
    a.1.jpg, a.1.txt, a.2.jpg, a.2.txt.

    Args:
      run: extension, and byte at which the member starts.

    Returns:
      Byte of the first member and the extensions of each sample.
    """
    parts: dict[str, set[str]] = {}
    for extension, _ in run:
        stem, _, last = extension.rpartition(".")
        parts.setdefault(stem, set()).add(last)
    whole = [last for last in parts.values() if len(last) > 1 and last.intersection(EXTENSIONS)]
    by_stem = len(whole) > 1
    samples: list[tuple[int, set[str]]] = []
    stem = None
    for extension, start in run:
        new_stem = by_stem and extension.rpartition(".")[0] != stem
        if not samples or new_stem or extension in samples[-1][1]:
            samples.append((start, set()))
            stem = extension.rpartition(".")[0]
        samples[-1][1].add(extension)
    return samples


def why_not_a_tar(start: bytes) -> str:
    """What a file is by its first bytes, that has no sample in it; "" for a tar of nothing."""
    if start == ZEROS:
        return ""
    if not start:
        return "is empty"
    is_tar = _parse(start) is not None
    return what_it_is(start) or ("has no sample in it" if is_tar else "is no tar")


def what_it_is(start: bytes) -> str | None:
    """Of a file that stands in place of another one, what it is by its first bytes."""
    return next((kind for magic, kind in NO_TARS if start.lower().startswith(magic)), None)


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


def _zeros_end(read: Callable[[int, int], bytes], place: int, end: int) -> int:
    """The first block from `place` on that is not all zeros, or the end of the whole blocks."""
    chunk = 1 << 16
    while place + BLOCK <= end:
        data = read(place, min(place + chunk, end))
        zeros = (len(data) - len(data.lstrip(b"\0"))) // BLOCK
        place += zeros * BLOCK
        if zeros < len(data) // BLOCK or not zeros:
            return place
    return place


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

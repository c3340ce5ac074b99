"""By which a file is known to have the bytes that were written."""

import xxhash
from etils import epath

READ_BYTES = 8 << 20


def file_checksum(path: epath.PathLike) -> list:
    """Number of bytes and xxh3_128 of a file, which is read in pieces."""
    digest, size = xxhash.xxh3_128(), 0
    with epath.Path(path).open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
            size += len(block)
    return [size, digest.hexdigest()]

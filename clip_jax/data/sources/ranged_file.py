"""A file that is read by ranges, for libraries that want an object to read from."""

import abc
import io


class RangedFile(io.RawIOBase, abc.ABC):
    """What is common to files of `size` bytes whose ranges come from elsewhere."""

    def __init__(self, size: int):
        self._size, self._place = size, 0

    @abc.abstractmethod
    def bytes_at(self, start: int, end: int) -> bytes:
        """Bytes `start` to `end`, of which there is one at least."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._place + size)
        if end <= self._place:
            return b""
        data = self.bytes_at(self._place, end)
        self._place = end
        return data

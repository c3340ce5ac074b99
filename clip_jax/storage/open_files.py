"""Local files that are kept open, and read at any place by any thread."""

import os
import threading
from collections import OrderedDict

OPEN_FILES = 256  # kept open by a process


class OpenFile:
    """A descriptor that is closed when the last thread that reads from it lets go."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class OpenFiles:
    """The files that were read last, kept open: opening costs more than reading on a network."""

    def __init__(self):
        self._lock, self._files = threading.Lock(), OrderedDict()

    def get(self, path: str) -> OpenFile:
        with self._lock:
            file = self._files.get(path)
            if file is not None:
                self._files.move_to_end(path)
                return file
        file = OpenFile(path)
        with self._lock:
            self._files[path] = file
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def forget(self, path: str):
        with self._lock:
            self._files.pop(path, None)


def pread(file: OpenFile, start: int, end: int) -> bytes:
    parts = []
    while start < end:  # one call reads 2 GiB at most
        part = os.pread(file.descriptor, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)

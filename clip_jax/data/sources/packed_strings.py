"""Many strings in one block of memory."""

from array import array


class PackedStrings:
    """A list of strings; one of as many `str` takes several times the memory."""

    def __init__(self):
        self._block, self._ends = bytearray(), array("q", [0])

    def append(self, string: str):
        self._block += string.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self._ends[index], self._ends[index + 1]
        return self._block[start:end].decode("utf-8", "surrogatepass")

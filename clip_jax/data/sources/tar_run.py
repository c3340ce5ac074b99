"""Samples of a piece of a tar shard that is in memory."""

from collections.abc import Callable

import numpy as np

from clip_jax.data.samples import BadSample, Sample
from clip_jax.data.sources.tar_members import members, split_name

Parse = Callable[..., Sample]  # (index, byte of its shard, its bytes, training=...)


class TarRun:
    """Samples of one piece of a shard, from number `first` and its byte `byte` on."""

    def __init__(
        self,
        parse: Parse,
        shard: str,
        first: int,
        byte: int,
        borders_N: np.ndarray,
        data: bytes | bytearray,
    ):
        self._parse, self._shard, self._first, self._byte = parse, shard, first, byte
        self._borders_N, self._data = borders_N, memoryview(data)

    def __getitem__(self, index: int) -> Sample:
        """Raises BadSample, also where the shard has fewer samples than it should."""
        return self.sample(index)

    def __len__(self) -> int:
        return len(self._borders_N) - 1

    def sample(self, index: int, *, training: bool | None = None) -> Sample:
        """As `run[index]`; out of training where it is said so."""
        place = index - self._first
        start, end = self._borders_N[place : place + 2].tolist() if place < len(self) else (0, 0)
        if not end:
            raise BadSample("not-in-shard", key=f"{self._shard}/{place}", shard=self._shard)
        return self._parse(
            index, self._byte + start, bytes(self._data[start:end]), training=training
        )


def take_apart(data: bytes) -> tuple[str | None, dict[str, bytes], str | None]:
    """Key, contents by extension, and what is wrong with the shard here, if anything."""
    damage: list[int] = []
    key, parts, damaged = None, {}, None
    for member in members(lambda a, b: data[a:b], 0, len(data), on_damage=damage.append):
        name = split_name(member.name)
        if name is None:
            continue
        key = key or name[0]
        if member.data + member.size > len(data):
            damaged = "truncated-tar"
        elif name[0] == key:
            parts[name[1]] = data[member.data : member.data + member.size]
    return key, parts, damaged or ("damaged-tar-header" if damage else None)

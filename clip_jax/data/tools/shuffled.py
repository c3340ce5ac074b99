"""A source in another, random order, which a conversion keeps for good."""

import numpy as np
import xxhash

from clip_jax.data.samples import Sample, Source
from clip_jax.data.shuffle import hash64, permute


class Shuffled:
    """The samples of `source` in the order that `seed` draws, without a list of it in memory."""

    def __init__(self, source: Source, seed: int):
        self._source, self._key = source, hash64(seed)
        self.name = f"{source.name} (shuffled, seed {seed})"
        self.fingerprint = xxhash.xxh3_64_hexdigest(f"{source.fingerprint} {seed}".encode())
        self.classes, self.templates = source.classes, source.templates
        self.notes, self.lost = source.notes, source.lost

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._source[int(permute(np.array([index]), len(self), self._key)[0])]


def in_order(source: Source, shuffle: int | None) -> Source:
    """The source itself, or in the random order of a seed."""
    return source if shuffle is None else Shuffled(source, shuffle)

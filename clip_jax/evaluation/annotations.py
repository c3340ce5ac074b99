"""What evaluation needs to know of a data set besides its pixels: captions, labels, groups."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import xxhash

from clip_jax.data.samples import BadSample, Source
from clip_jax.distributed.multihost import allgather_json, raise_together

THREADS = 16  # reading waits for a disk or a network


class Annotation(NamedTuple):
    index: int  # in the source
    captions: tuple[str, ...]  # those with something in them
    label: int | None  # None: no class
    group: str | None
    labels: tuple[int, ...] | None = None  # of an image that may be of several classes or of none
    image: int | None = None  # a hash of the file; None: it cannot be read

    @classmethod
    def from_json(cls, entry: list) -> "Annotation":
        """Of the list that JSON makes of one."""
        found = cls(*entry)
        labels = None if found.labels is None else tuple(found.labels)
        return found._replace(captions=tuple(found.captions), labels=labels)


def read_annotations(source: Source, indices: Sequence[int]) -> list[Annotation]:
    """The annotations of some samples, in the order of `indices`, the same in every process.

    Each process reads its share of the samples, without decoding an image. One that cannot be read
    has no captions, no labels and no group.

    Raises:
      ValueError: one process cannot read its share; in all of them.
    """
    share = indices[jax.process_index() :: jax.process_count()]
    mine, failure = [], None
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            mine = list(pool.map(lambda index: _read(source, int(index)), share))
    except Exception as error:
        failure = error
    raise_together(failure)
    parts = allgather_json(mine)
    # The first entry of all parts, then the second of all, ...: the order before the sharing out.
    count = len(parts)
    entries = (parts[place % count][place // count] for place in range(len(indices)))
    return [Annotation.from_json(entry) for entry in entries]


def _read(source: Source, index: int) -> Annotation:
    try:
        sample = source[index]
    except BadSample:
        return Annotation(index, (), None, None)
    captions = tuple(caption for caption in sample.captions if caption.strip())
    # Some sources say "no class" with -1, as TensorFlow Datasets does.
    label = None if sample.label is None or sample.label < 0 else int(sample.label)
    image = xxhash.xxh3_64_intdigest(sample.image)
    return Annotation(index, captions, label, sample.group, sample.labels, image)

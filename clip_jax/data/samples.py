"""What a source gives: a sample, or the reason why it cannot."""

from dataclasses import dataclass, field
from typing import Protocol

from clip_jax.redaction import redact


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its captions, not yet decoded."""

    image: bytes = field(repr=False)  # an encoded file: JPEG, PNG, WebP, ...
    captions: tuple[str, ...]  # one or more; training draws one, evaluation takes the first
    key: str  # unique within the source and readable, such as "00012.tar/000120045"
    shard: str  # the file that a person would have to look into
    label: int | None = None  # index into the source's classes
    group: str | None = None  # results of a group are reported apart, such as "held_out"
    caption_probs: tuple[float, ...] | None = None  # of the captions; None: all alike


class BadSample(Exception):
    """A sample that cannot be used. It is replaced and counted, never silently lost.

    `reason` is a short slug such as "truncated-jpeg": the ledger counts by it. `key` and `shard`
    end in files and on pages, so that a signed URL in them is masked.
    """

    def __init__(self, reason: str, *, key: str, shard: str):
        key, shard = redact(key), redact(shard)
        super().__init__(reason, key, shard)  # all of them, so that it survives pickling
        self.reason, self.key, self.shard = reason, key, shard

    def __reduce__(self):
        return _bad_sample, (self.reason, self.key, self.shard)

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def _bad_sample(reason: str, key: str, shard: str) -> BadSample:
    return BadSample(reason, key=key, shard=shard)


class Source(Protocol):
    """Samples by number. Sources can be pickled and may be read by several threads at once."""

    name: str  # as a person would say it, such as "pairs:captions.csv"
    fingerprint: str  # of what is in it, the same wherever the files lie
    classes: tuple[str, ...] | None  # names of the labels, for zero-shot classification
    templates: tuple[str, ...] | None  # prompts with {} for a class name

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; raises BadSample where there is none to be had."""
        ...

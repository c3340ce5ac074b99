"""What a source gives, a sample or the reason why it cannot, and the record that opens a source."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import xxhash

from clip_jax.config import DataConfig
from clip_jax.redaction import redact

Split = Literal["train", "test"]

# Characters that are no text: NUL, halves of surrogate pairs, and U+FFFD, which stands where another
# program could not decode a byte. No tokenizer is trained on them, and some fail on them.
BROKEN = re.compile("[\x00\ud800-\udfff\ufffd]")
# Characters of a key: it is printed, logged and kept, whatever stands in a data set.
MOST_KEY = 1_000


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its captions, not yet decoded."""

    image: bytes = field(repr=False)  # an encoded file: JPEG, PNG, WebP, ...
    captions: tuple[str, ...]  # training draws one, evaluation takes the first; none in `images:`
    key: str  # unique within the source and readable, such as "00012.tar/000120045"
    shard: str  # the file that a person would have to look into
    label: int | None = None  # index into the source's classes
    labels: tuple[int, ...] | None = None  # of an image that may be of several classes or of none
    group: str | None = None  # results of a group are reported apart, such as "held_out"
    caption_probs: tuple[float, ...] | None = None  # of the captions; None: all alike
    had_broken_text: bool = False  # a caption lost characters that are no text
    # The path or URL of the image's own file; None: it lies in a shard.
    path: str | None = field(default=None, compare=False)

    def __post_init__(self):
        """Keep out of every tokenizer, log and page what is no text, whatever the source is."""
        key, shard = printable(self.key), printable(self.shard)
        if key is not self.key or shard is not self.shard:
            object.__setattr__(self, "key", key)
            object.__setattr__(self, "shard", shard)
        for caption in self.captions:
            if not isinstance(caption, str):
                raise BadSample("caption-not-text", key=key, shard=shard)
        if any(map(BROKEN.search, self.captions)):
            self._remove_broken_text()

    def _remove_broken_text(self):
        probs = self.caption_probs or (1.0,) * len(self.captions)
        cleaned = ((BROKEN.sub("", text).strip(), prob) for text, prob in zip(self.captions, probs))
        kept = [(text, prob) for text, prob in cleaned if text]
        if not kept:
            raise BadSample("caption-not-text", key=self.key, shard=self.shard)
        total = sum(prob for _, prob in kept)
        shares = tuple(prob / total for _, prob in kept) if self.caption_probs else None
        object.__setattr__(self, "captions", tuple(text for text, _ in kept))
        object.__setattr__(self, "caption_probs", shares)
        object.__setattr__(self, "had_broken_text", True)


@dataclass(frozen=True, slots=True)
class Question:
    """Which of a few images belong to which of a few texts: what a choice is measured on.

    A source that has some names them in its attribute `questions`.
    """

    images: tuple[int, ...]  # numbers of the source's samples
    texts: tuple[str, ...]
    right: tuple[tuple[int, int], ...]  # pairs that belong together: places in images and texts
    group: str | None = None  # results of a group are reported apart


def printable(name: str) -> str:
    """A name that can be written as UTF-8; bytes of another encoding become U+FFFD.

    Of one that is longer than MOST_KEY the rest is replaced by its hash.
    """
    if len(name) > MOST_KEY:
        data = name.encode("utf-8", "surrogatepass")
        name = f"{name[: MOST_KEY - 20]}...{xxhash.xxh3_64_hexdigest(data)}"
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape" if _escaped(name) else "replace").decode(
            "utf-8", "replace"
        )
    return name


def _escaped(name: str) -> bool:
    """Whether its surrogates are bytes of a file name, as Python keeps them."""
    return all("\udc80" <= char <= "\udcff" for char in name if "\ud800" <= char <= "\udfff")


class BadSample(Exception):
    """A sample that cannot be used. It is replaced and counted, never silently lost.

    `reason` is a short slug such as "truncated-jpeg": the bad_samples counts by it. `key` and `shard`
    end in files and on pages, so that a signed URL in them is masked.
    """

    def __init__(self, reason: str, *, key: str, shard: str):
        key, shard = redact(printable(key)), redact(printable(shard))
        super().__init__(reason, key, shard)  # all of them, so that it survives pickling
        self.reason, self.key, self.shard = reason, key, shard

    def __reduce__(self):
        return _bad_sample, (self.reason, self.key, self.shard)

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


def _bad_sample(reason: str, key: str, shard: str) -> BadSample:
    return BadSample(reason, key=key, shard=shard)


class Source(Protocol):
    """Samples by number. Sources can be pickled and may be read by several threads at once.

    A class from outside the tree needs `__len__` and `__getitem__` alone; what else is missing is
    filled in when it is opened.
    """

    name: str  # as a person would say it, such as "pairs:captions.csv"
    fingerprint: str  # of what is in it, the same wherever the files lie
    classes: tuple[str, ...] | None  # names of the labels, for zero-shot classification
    templates: tuple[str, ...] | None  # prompts with {} for a class name
    notes: tuple[str, ...]  # what a person should know of how it is read; `data stats` prints them
    lost: int  # samples expected in files that cannot be used; they count as bad

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; raises BadSample where there is none to be had."""
        ...


class SourceFormat(NamedTuple):
    """How sources of one format are opened: the record that the table of formats names.

    Each function takes the location, what follows `format:` in `data.source`.
    """

    open: Callable[[str, Split, DataConfig], Source]
    has_test_split: Callable[[str, DataConfig], bool] = lambda location, cfg: False
    index: Callable[..., object] | None = None  # None: the format needs no index
    has_captions: bool = True

"""A part of a source as a source: `data.subset`, whatever the format."""

import concurrent.futures
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tqdm
import xxhash

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.block_cache import Span
from clip_jax.data.block_order import Blocks
from clip_jax.data.block_reader import Run
from clip_jax.data.samples import BadSample, Sample, Source
from clip_jax.data.subset_file import SUFFIX, SubsetFile, write_subset
from clip_jax.redaction import redact

ALL = "all"  # in data.subset: every sample of that source
BLOCK = 4096  # samples that are read at once for their keys
THREADS = 16  # reading waits for a disk or a network


class SubsetSource:
    """The samples of `source` that a subset file names, in the order of their numbers there."""

    lost = 0  # the subset names no sample that the source does not have

    def __init__(self, source: Source, subset: SubsetFile):
        about, shown = subset.about, redact(subset.path)
        if about.source_fingerprint != source.fingerprint:
            raise ValueError(
                f"{shown} is a subset of {about.source} ({about.source_samples:_} samples, fingerprint "
                f"{about.source_fingerprint}), and {source.name} has {len(source):_} samples and "
                f"fingerprint {source.fingerprint}: name the subset of this source in data.subset, "
                "or make it again with `clip-jax data filter` or `clip-jax data subset`"
            )
        self.source, self.subset = source, subset
        self.name = f"{source.name} (subset {os.path.basename(shown)})"
        both = f"{source.fingerprint} {about.xxh3}"
        self.fingerprint = xxhash.xxh3_64_hexdigest(both.encode())
        self.classes, self.templates = source.classes, source.templates
        self.captioned = getattr(source, "captioned", True)
        kept = f"data.subset={shown} keeps {len(subset):_} of {len(source):_} samples"
        self.notes = (*source.notes, kept)

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source[int(self.subset.numbers_N[index])]

    @property
    def remote(self) -> bool:
        return getattr(self.source, "remote", False)

    @property
    def blocks(self) -> Blocks | None:
        """Those of the source in which a sample is kept."""
        blocks = getattr(self.source, "blocks", None)
        if blocks is None:
            return None
        first_K = np.unique(np.searchsorted(self.subset.numbers_N, blocks.first_K))
        return blocks._replace(first_K=first_K.astype(np.int64))

    def span(self, start: int, end: int) -> Span:
        """Where samples `start` to `end` are, with those between them that are not kept."""
        return self.source.span(*self._run(start, end))

    def unpack(self, start: int, end: int, data: bytes | bytearray) -> "_KeptRun":
        """These samples, of the bytes of their span."""
        return _KeptRun(self.source.unpack(*self._run(start, end), data), self.subset)

    def _run(self, start: int, end: int) -> tuple[int, int]:
        numbers_N = self.subset.numbers_N
        return int(numbers_N[start]), int(numbers_N[end - 1]) + 1


class _KeptRun:
    """A run of the whole source, by the numbers of the subset."""

    def __init__(self, run: Run, subset: SubsetFile):
        self._run, self._subset = run, subset

    def __getitem__(self, index: int) -> Sample:
        return self._run[int(self._subset.numbers_N[index])]


def take_subset(source: Source, name: str, cfg: DataConfig) -> Source:
    """The part of `source` that `name` says.

    Args:
      source: opened, with all of its samples.
      name: "all", a subset file (.safetensors), or a list of keys, one a line (.txt); paths or URLs.
      cfg: where the numbers that belong to a list of keys are kept (`data_dir`).

    Raises:
      ValueError: it is a subset of other data, damaged, or names keys that the source does not have.
      FileNotFoundError: there is no such file.
    """
    if name == ALL:
        return source
    if name.endswith(".txt"):
        return SubsetSource(source, _of_keys(source, name, Path(cfg.data_dir) / "subsets"))
    if not name.endswith(SUFFIX):
        raise ValueError(
            f"data.subset={name!r} is neither a subset file ({SUFFIX}) nor a list of keys (.txt): "
            "`clip-jax data subset SOURCE FILE OUT` makes a subset file of a .npy of sample numbers"
        )
    path = name
    if storage.is_url(name):
        path = _copied(name, Path(cfg.data_dir) / "subsets")
    return SubsetSource(source, SubsetFile(os.path.expanduser(path)))


def base(source: Source, index_N: np.ndarray) -> tuple[Source, np.ndarray]:
    """The whole source that a subset is of, and the numbers there of samples of the subset."""
    if not isinstance(source, SubsetSource):
        return source, index_N
    return source.source, np.asarray(source.subset.numbers_N)[index_N].astype(np.int64)


def numbers_of_keys(source: Source, keys: list[str], *, where: str) -> np.ndarray:
    """The numbers of the samples with these keys, rising; the whole source is read once.

    Raises:
      ValueError: some keys are not in the source, or two samples of it have one of them.
    """
    digests = [xxhash.xxh3_128_digest(key.encode()) for key in keys]
    wanted_K, first_K = np.unique(np.array(digests, "S16"), return_index=True)
    found, place = [], []
    for start, block in _keys_in_blocks(source):
        digest_B = np.array([xxhash.xxh3_128_digest(key.encode()) for key in block], "S16")
        place_B = np.minimum(np.searchsorted(wanted_K, digest_B), len(wanted_K) - 1)
        hit_B = np.flatnonzero(wanted_K[place_B] == digest_B)
        found.append(start + hit_B)
        place.append(place_B[hit_B])
    numbers, place = np.concatenate(found), np.concatenate(place)
    count_K = np.bincount(place, minlength=len(wanted_K))
    if (absent_K := first_K[count_K == 0]).size:
        first = ", ".join(repr(keys[index]) for index in np.sort(absent_K)[:3])
        raise ValueError(
            f"{where}: {absent_K.size:_} of {len(wanted_K):_} keys are not in {source.name}, such as "
            f"{first}. A key is as `clip-jax data preview` shows it, such as {_example(source)!r}"
        )
    if (twice_K := first_K[count_K > 1]).size:
        raise ValueError(
            f"{where}: {twice_K.size:_} keys are of more than one sample of {source.name}, such as "
            f"{keys[twice_K[0]]!r}: name its samples by their numbers (.npy)"
        )
    return numbers


def read_keys(path: str) -> list[str]:
    """The lines of a list of keys, those with something in them."""
    try:
        text = storage.read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    keys = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not keys:
        raise ValueError(f"{path} names no keys")
    return keys


def _of_keys(source: Source, path: str, cache: Path) -> SubsetFile:
    """The subset file of a list of keys, made once for this source and this list."""
    keys = read_keys(path)
    listed = f"1 {source.fingerprint} {xxhash.xxh3_128_hexdigest(chr(10).join(keys).encode())}"
    file = cache / f"{xxhash.xxh3_64_hexdigest(listed.encode())}{SUFFIX}"
    with storage.exclusive(file.with_suffix(".lock")):
        if not file.is_file():
            about = {"source": redact(source.name), "fingerprint": source.fingerprint}
            numbers = numbers_of_keys(source, keys, where=redact(path))
            write_subset(file, numbers, samples=len(source), **about)
    return SubsetFile(file)


def _copied(url: str, cache: Path) -> str:
    """A local copy of a subset file behind a URL, which can be mapped into memory."""
    info = storage.stat([url])[0]
    file = cache / f"{xxhash.xxh3_64_hexdigest(f'{url} {info}'.encode())}{SUFFIX}"
    with storage.exclusive(file.with_suffix(".lock")):
        if not file.is_file():
            storage.atomic_write(file, storage.read_whole(url))
    return str(file)


def _keys_in_blocks(source: Source) -> Iterator[tuple[int, list[str]]]:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        starts = range(0, len(source), BLOCK)
        for start in tqdm.tqdm(starts, unit="block", desc="Reading keys", disable=None):
            block = range(start, min(start + BLOCK, len(source)))
            yield start, list(pool.map(lambda index: _key(source, index), block))


def _key(source: Source, index: int) -> str:
    try:
        return source[index].key
    except BadSample as error:
        return error.key


def _example(source: Source) -> str:
    return _key(source, 0)

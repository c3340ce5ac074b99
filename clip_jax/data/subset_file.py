"""Files of sample numbers: which samples of a source are kept, with what tells the source again.

The file is a safetensors file, which any language reads, with one tensor `numbers`: the kept sample
numbers, rising, U32, or U64 where the source has more samples. Its metadata, all texts:

    format              "clip_jax subset"
    version             "1"
    source              the name of the source, for a person
    source_fingerprint  of the source; a subset is refused with other data
    source_samples      how many samples the source has
    xxh3                xxh3_128 of the bytes of `numbers`, in hexadecimal
    made_by             the command and its settings, if a command made it
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from safetensors.numpy import save

from clip_jax import storage

FORMAT, VERSION = "clip_jax subset", 1
SUFFIX = ".safetensors"
DTYPES = {"U32": "<u4", "U64": "<u8"}
BLOCK = 1 << 22  # numbers that are checked at once
MOST_HEADER = 1 << 20  # bytes


class About(NamedTuple):
    """What the metadata of a subset file says."""

    source: str
    source_fingerprint: str
    source_samples: int
    xxh3: str
    made_by: str


class SubsetFile:
    """The sample numbers of a file, mapped into memory; pickled by its path.

    Raises (where it is made):
      FileNotFoundError: there is no such file.
      ValueError: it is no subset file, or damaged.
    """

    def __init__(self, path: str | os.PathLike, *, check: bool = True):
        self.path = os.fspath(path)
        self.about, dtype, offset, count = _read_header(self.path)
        self.numbers_N = np.memmap(self.path, dtype, "r", offset, (count,))
        if check:
            self._check()

    def __len__(self) -> int:
        return len(self.numbers_N)

    def __reduce__(self):
        return _open_checked, (self.path,)

    def _check(self):
        digest, last = xxhash.xxh3_128(), -1
        for start in range(0, len(self), BLOCK):
            block_N = np.asarray(self.numbers_N[start : start + BLOCK])
            digest.update(block_N)
            rises = int(block_N[0]) > last and bool((block_N[1:] > block_N[:-1]).all())
            if not rises:
                raise ValueError(f"{self.path}: the sample numbers of a subset must rise")
            last = int(block_N[-1])
        if digest.hexdigest() != self.about.xxh3:
            raise ValueError(
                f"{self.path} is damaged: its sample numbers have another checksum than its metadata "
                "says. Write or copy it again"
            )
        if last >= self.about.source_samples:
            raise ValueError(
                f"{self.path} names sample {last} of a source with {self.about.source_samples:_}"
            )


def write_subset(
    path: str | os.PathLike,
    numbers: Any,
    *,
    source: str,
    fingerprint: str,
    samples: int,
    made_by: str = "",
) -> str:
    """Write the file of a subset, atomically; the path.

    Args:
      path: a file or a URL that ends in .safetensors.
      numbers: (kept,) whole numbers below `samples`, each once, in any order.
      source, fingerprint, samples: name, fingerprint and length of the source.
      made_by: the command and its settings.

    Raises:
      ValueError: the name ends in something else, or the numbers are not of the source.
    """
    if not os.fspath(path).endswith(SUFFIX):
        raise ValueError(f"{path}: the name of a subset file ends in {SUFFIX}")
    given_N = np.asarray(numbers)
    if given_N.ndim != 1 or (given_N.size and given_N.dtype.kind not in "iu"):
        raise ValueError(f"sample numbers are one row of whole numbers, not {given_N.dtype} {given_N.shape}")  # fmt: skip
    kept_N = np.unique(given_N)
    if len(kept_N) != len(given_N):
        raise ValueError(f"{len(given_N) - len(kept_N)} sample numbers are named more than once")
    if len(kept_N) and not (kept_N[0] >= 0 and kept_N[-1] < samples):
        wrong = kept_N[-1] if kept_N[0] >= 0 else kept_N[0]
        raise ValueError(f"there is no sample {wrong} in {source}, which has {samples:_}")
    kept_N = np.ascontiguousarray(kept_N.astype("<u4" if samples <= 2**32 else "<u8"))
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "source": source,
        "source_fingerprint": fingerprint,
        "source_samples": str(samples),
        "xxh3": xxhash.xxh3_128_hexdigest(kept_N),
        "made_by": made_by,
    }
    storage.atomic_write(path, save({"numbers": kept_N}, metadata))
    return os.fspath(path)


def _open_checked(path: str) -> SubsetFile:
    """In another process, of a file that has been checked."""
    return SubsetFile(path, check=False)


def _read_header(path: str) -> tuple[About, np.dtype, int, int]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no subset file {path}")
    size = os.path.getsize(path)
    wrong = ValueError(
        f"{path} is no subset file: `clip-jax data filter` writes them, and `clip-jax data subset "
        "SOURCE FILE OUT` makes one of a list of keys or sample numbers"
    )
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise wrong
        try:
            header = json.loads(file.read(length))
            metadata, tensor = header["__metadata__"], header["numbers"]
            known, version = metadata["format"] == FORMAT, int(metadata["version"])
            dtype, (count,) = np.dtype(DTYPES[tensor["dtype"]]), tensor["shape"]
            start, end = tensor["data_offsets"]
            about = About(
                metadata["source"],
                metadata["source_fingerprint"],
                int(metadata["source_samples"]),
                metadata["xxh3"],
                metadata.get("made_by", ""),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise wrong from error
    if not known:
        raise wrong
    if version != VERSION:
        raise ValueError(f"{path} is a subset file of version {version}; this code reads {VERSION}")
    if end - start != count * dtype.itemsize or 8 + length + end != size:
        raise ValueError(f"{path} is damaged: it has {size} bytes, and its header says otherwise")
    if not count:
        raise ValueError(f"{path} keeps none of the {about.source_samples:_} samples")
    return about, dtype, 8 + length + start, count

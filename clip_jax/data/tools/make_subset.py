"""Makes the subset file of a source from a list of keys or of sample numbers."""

import io

import numpy as np

from clip_jax import storage
from clip_jax.data.samples import Source
from clip_jax.data.sources.subset import base, numbers_of_keys, read_keys
from clip_jax.data.subset_file import SUFFIX, write_subset
from clip_jax.redaction import redact


def make_subset(source: Source, samples: str, out: str) -> str:
    """Write the subset file `out`; what is in it, for a terminal.

    Args:
      source: opened. Where it is a subset, `samples` is of that, and `out` of the whole source.
      samples: a .txt of keys, one a line; or a .npy of sample numbers, or of a truth value for each
        sample of the source.
      out: a path or a URL that ends in .safetensors.

    Raises:
      ValueError: keys or numbers that the source does not have, with their count.
    """
    where = redact(samples)
    if not out.endswith(SUFFIX):
        raise ValueError(f"{out}: the name of a subset file ends in {SUFFIX}")
    if samples.endswith(".txt"):
        index_N = numbers_of_keys(source, read_keys(samples), where=where)
    elif samples.endswith(".npy"):
        index_N = _read_numbers(storage.read_file(samples), len(source), where)
    else:
        raise ValueError(f"{where}: keys are read from a .txt and sample numbers from a .npy")
    whole, index_N = base(source, index_N)
    about = {"source": redact(whole.name), "fingerprint": whole.fingerprint, "samples": len(whole)}
    write_subset(out, index_N, made_by=f"clip-jax data subset of {where}", **about)
    return f"{out}: {len(index_N):_} of {len(whole):_} samples of {about['source']}"


def _read_numbers(data: bytes, samples: int, where: str) -> np.ndarray:
    try:
        read_N = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{where} is no .npy of numbers: {error}") from error
    if read_N.ndim != 1 or read_N.dtype.kind not in "iub":
        raise ValueError(f"{where}: sample numbers are one row of whole numbers or truth values, not {read_N.dtype} {read_N.shape}")  # fmt: skip
    if read_N.dtype.kind == "b":
        if len(read_N) != samples:
            raise ValueError(f"{where} has {len(read_N):_} truth values for {samples:_} samples")
        return np.flatnonzero(read_N)
    outside_N = read_N[(read_N < 0) | (read_N >= samples)]
    if len(outside_N):
        raise ValueError(
            f"{where}: {len(outside_N):_} of {len(read_N):_} numbers are of no sample, such as "
            f"{outside_N[0]}; the source has {samples:_}"
        )
    return read_N

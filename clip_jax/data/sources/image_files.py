"""Reads image files that lie by themselves, on a disk or behind URLs."""

import errno
from pathlib import Path

from clip_jax import storage
from clip_jax.data.samples import BadSample

# These say nothing of the file: this process has too much open, or too little memory.
OWN_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_image(path: str, *, key: str, shard: str) -> bytes:
    """All of the file of one sample.

    Raises:
      BadSample: the file is not there or cannot be read, and that is so for this file.
      OSError: a storage does not answer, or answers that it is out of order; the message names
        the file.
    """
    try:
        return storage.read_whole(path) if storage.is_url(path) else Path(path).read_bytes()
    except FileNotFoundError as error:
        reason, cause = "missing-file", error
    except IsADirectoryError as error:
        reason, cause = "not-a-file", error
    except ValueError as error:  # no path can be like this, such as one with a zero byte in it
        reason, cause = "unreadable-file", error
    except OSError as error:
        out_of_order = storage.is_url(path) and not isinstance(error, storage.Refused)
        if out_of_order or error.errno in OWN_FAULTS:
            raise
        reason, cause = "unreadable-file", error
    raise BadSample(reason, key=key, shard=shard) from cause

"""Reads image files that lie by themselves, on a disk or behind URLs."""

import errno
import os
import stat
from urllib.parse import urlsplit

from clip_jax import storage
from clip_jax.data.samples import BadSample

# These say nothing of the file: this process has too much open, or too little memory.
OWN_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_image(path: str, *, key: str, shard: str) -> bytes:
    """All of the file of one sample.

    Raises:
      BadSample: the file is not there or cannot be read, and that is so for this file; or its web
        server does not answer.
      OSError: a storage does not answer, or answers that it is out of order; the message names
        the file.
    """
    try:
        if storage.is_web(path):
            return _read_web(path)
        return storage.read_whole(path) if storage.is_url(path) else _read_local(path)
    except FileNotFoundError as error:
        reason, cause = "missing-file", error
    except IsADirectoryError as error:
        reason, cause = "not-a-file", error
    except ValueError as error:  # no path can be like this, such as one with a zero byte in it
        reason, cause = "unreadable-file", error
    except OSError as error:
        out_of_order = storage.is_url(path) and not isinstance(error, storage.Refused)
        is_web = storage.is_web(path)
        if (out_of_order and not is_web) or error.errno in OWN_FAULTS:
            raise
        # Lists of URLs name many servers, of which some are gone for ever.
        reason, cause = "no-answer" if out_of_order else "unreadable-file", error
    raise BadSample(reason, key=key, shard=shard) from cause


def _read_local(path: str) -> bytes:
    """A regular file alone: a pipe gives nothing and a device without end, for ever."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise IsADirectoryError(errno.EISDIR, "this is no regular file", path)
        return file.read()


def _read_web(url: str) -> bytes:
    """The file at a URL. A server that did not answer the last time is asked once, without waiting."""
    host = urlsplit(url).netloc
    try:
        data = storage.read_whole(url, patient=host not in _silent)
    except OSError as error:
        if not isinstance(error, storage.Refused | FileNotFoundError):
            _silent.add(host)
        raise
    _silent.discard(host)
    return data


_silent: set[str] = set()  # servers that did not answer

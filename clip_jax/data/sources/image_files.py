"""Reads image files that lie by themselves, on a disk or behind URLs."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from clip_jax import storage
from clip_jax.data.samples import BadSample

# These say nothing of the file: this process has too much open, or too little memory.
OWN_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
PROBED = 10  # image paths of which one must exist
# How JPEG, PNG, GIF, WebP, BMP and TIFF begin in base64.
BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "SUkqA", "TU0AK")
SHOWN = 40  # characters of a path in a message: a picture in base64 would fill the screen


def has_one(paths: Sequence[str | None], resolve: Callable[[str], str]) -> bool:
    """Whether one of these image paths is there."""
    return any(path and _is_there(resolve(path)) for path in paths)


def beside(image: str, table: str) -> str:
    """Where an image lies of which a table holds the path: a relative one starts at its folder."""
    if storage.is_url(image) or os.path.isabs(image):
        return image
    return f"{table.rpartition('/')[0] or '.'}/{image}"


def refuse_unless_there(images: Sequence, table: str):
    """Of the first images of a table one must be there, and none be written in base64.

    Args:
      images: encoded files, or paths; None where there is neither.
      table: the path of the table.

    Raises:
      ValueError: the first is base64.
      FileNotFoundError: all are paths, and no file is there.
    """
    found = [image for image in images if image]
    paths = [image for image in found if isinstance(image, str)]
    if not found or has_one(paths, lambda image: beside(image, table)):
        return
    refuse_base64(found[0], where=table, inside="table")
    if len(paths) == len(found):
        raise none_there(paths, where=table, folder=table.rpartition("/")[0])


def refuse_base64(image: str | bytes | None, *, where: str, inside: str):
    """Raises ValueError for a first image that is written in base64 inside of a list or a table."""
    text = image[:1024].decode("latin-1") if isinstance(image, bytes) else image or ""
    text = text.split(",")[-1] if text.startswith("data:") else text
    if len(text) > SHOWN and text.startswith(BASE64):
        raise ValueError(
            f"{where}: its first image is base64, {text[:10]!r}...: images inside of a {inside} are not "
            "read so. Write them as files, or as bytes into a Parquet table"
        )


def none_there(
    paths: Sequence[str | None], *, where: str, folder: str, mend: str = ""
) -> FileNotFoundError:
    """What is said where none of the first images is there."""
    mend += "; write / for each \\ in them" if "\\" in (paths[0] or "") else ""
    return FileNotFoundError(
        f"{where}: none of its first {len(paths)} images is there; the first is "
        f"{(paths[0] or '')[:SHOWN]!r}, looked for in {folder or '.'}. Relative paths "
        f"start at the folder of the file{mend}"
    )


def _is_there(path: str) -> bool:
    try:
        return storage.is_file(path)
    except (OSError, ValueError):  # a host that does not answer, or a path that cannot be one
        return False


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

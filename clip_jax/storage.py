"""Local paths and URLs: list, read ranges with retries, write atomically, lock, cache."""

import atexit
import concurrent.futures
import contextlib
import fcntl
import functools
import glob
import os
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import fsspec
from absl import logging
from etils import epath
from etils.epath import gpath

T = TypeVar("T")

RETRY_DELAYS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between the tries
FINAL = (IsADirectoryError, NotADirectoryError, PermissionError)  # waiting does not help
PASSING = (408, 425, 429)  # of HTTP's answers of 400 to 499, those that do pass
RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?:(?P<total>\d+)|\*)")
OPEN_FILES = 256  # kept open by a process
LISTING_THREADS = 32


class FileInfo(NamedTuple):
    """What tells that a file has changed."""

    size: int  # bytes
    version: str  # modification time in ns; of a URL what its server offers


class Refused(OSError):
    """The storage answers, and its answer is no: asking again does not help."""


class NoRanges(ValueError):
    """A server that does not send parts of files: each of them would be the beginning."""

    def __init__(self, path: str):
        super().__init__(
            f"{path}: the server does not send ranges of bytes, which random access needs (python -m "
            "http.server is such a one): copy the files to a disk or a bucket, or use another server"
        )


def is_url(path: str) -> bool:
    """Whether fsspec reads it, rather than the operating system."""
    return "://" in path


def is_web(path: str) -> bool:
    """Whether a URL is of a web server, which has no folders that could be listed."""
    return path.startswith(("http://", "https://"))


def is_folder(path: str) -> bool:
    """Whether a path or a URL is a folder, as far as a bucket has any."""
    if not is_url(path):
        return os.path.isdir(os.path.expanduser(path))
    # Of a web server fsspec would read the whole file, in search of links.
    if is_web(path) or any(letter in path for letter in "*?[{"):
        return path.endswith("/")
    filesystem, name = fsspec.core.url_to_fs(path)
    return bool(retry(lambda: filesystem.isdir(name), path))


def is_file(path: str) -> bool:
    """Whether a path or a URL is a file that is there."""
    if not is_url(path):
        return os.path.isfile(os.path.expanduser(path))
    filesystem, name = fsspec.core.url_to_fs(path)
    return bool(retry(lambda: filesystem.isfile(name), path))


def stat(paths: Sequence[str]) -> list[FileInfo]:
    """Size and version of each file."""
    if len(paths) == 1:
        return [_stat(paths[0])]
    with concurrent.futures.ThreadPoolExecutor(LISTING_THREADS) as pool:
        return list(pool.map(_stat, paths))


def _stat(path: str) -> FileInfo:
    if not is_url(path):
        found = os.stat(path)
        return FileInfo(found.st_size, str(found.st_mtime_ns))

    def ask() -> FileInfo:
        filesystem, name = fsspec.core.url_to_fs(path)
        info = filesystem.info(name)
        keys = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "generation")
        return FileInfo(info["size"], str(next((info[k] for k in keys if info.get(k)), "")))

    return retry(ask, path)


def read_range(path: str, start: int, end: int) -> bytes:
    """Bytes `start` to `end` of a file, fewer where it ends before; failures are tried again.

    Raises:
      OSError: it still fails after all tries; the message names the file.
      NoRanges: the server sends the file from its beginning, whatever is asked for.
    """
    if start >= end:
        return b""

    def read() -> bytes:
        if not is_url(path):
            return _pread(_files.get(path), start, end)
        filesystem, name = fsspec.core.url_to_fs(path)
        if is_web(path):
            return fsspec.asyn.sync(filesystem.loop, _web_range, filesystem, name, start, end)
        data = filesystem.cat_file(name, start=start, end=end)
        if len(data) > end - start:
            raise NoRanges(path)
        return data

    return retry(read, path)


async def _web_range(filesystem, url: str, start: int, end: int) -> bytes:
    """A range of a file of a web server, which must say that it sends that range and no other.

    fsspec takes the beginning of the file for it where a server ignores the header.
    """
    session = await filesystem.set_session()
    settings = dict(filesystem.kwargs)
    asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    headers = {**settings.pop("headers", {}), **asked}
    async with session.get(filesystem.encode_url(url), headers=headers, **settings) as answer:
        if answer.status == 416:  # it begins behind the end of the file
            return b""
        filesystem._raise_not_found_for_status(answer, url)
        span = RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if answer.status != 206 or span is None or int(span["first"]) != start:
            raise NoRanges(url)
        last = min(int(span["last"]), int(span["total"]) - 1 if span["total"] else end)
        data = await answer.read()
    if len(data) != last + 1 - start:
        raise OSError(f"{len(data)} bytes came of {last + 1 - start}")
    return data[: end - start]


def read_file(path: str) -> bytes:
    """All of a small file, a path or a URL."""
    return read_whole(path) if is_url(path) else Path(path).expanduser().read_bytes()


def read_whole(url: str, *, patient: bool = True) -> bytes:
    """All of a file behind a URL; failures are tried again, unless not `patient`.

    Raises:
      FileNotFoundError: it is not there.
      Refused: it may not be read.
      OSError: it still fails after all tries; the message names the file.
    """
    filesystem, name = fsspec.core.url_to_fs(url)

    def read() -> bytes | None:
        try:
            return filesystem.cat_file(name)
        except FileNotFoundError:  # an answer, not a failure: there is no use in asking again
            return None

    data = retry(read, url, patient=patient)
    if data is None:
        raise FileNotFoundError(url)
    return data


def retry(action: Callable[[], T], path: str, *, patient: bool = True) -> T:
    """Do it, again after each of RETRY_DELAYS while it fails, and name `path` when it will not."""
    delays = RETRY_DELAYS if patient else ()
    for number in range(len(delays) + 1):
        try:
            return action()
        # The clients of clouds have exception types of their own, of which a few are OSErrors.
        except Exception as error:
            if isinstance(error, ValueError | TypeError | ImportError):
                raise
            _files.forget(path)
            refused = isinstance(error, FINAL) or _is_refusal(error)
            if number == len(delays) or refused:
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
                raise (Refused if refused else kind)(
                    f"{path} cannot be read, after {number + 1} tries in {sum(delays[:number]):.0f} s: "
                    f"{type(error).__name__}: {error}"
                ) from error
            logging.warning("Reading %s failed (%s); trying again.", path, error)
            time.sleep(delays[number])
    raise AssertionError("the loop returns or raises")


def _is_refusal(error: Exception) -> bool:
    """Whether it carries an answer of HTTP that says that the request is at fault."""
    names = ("status", "status_code", "code")  # of aiohttp, of Azure's client, of gcsfs
    answer = next((getattr(error, name) for name in names if hasattr(error, name)), None)
    return isinstance(answer, int) and 400 <= answer < 500 and answer not in PASSING


class _OpenFile:
    """A descriptor that is closed when the last thread that reads from it lets go."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class _Files:
    """The files that were read last, kept open: opening costs more than reading on a network."""

    def __init__(self):
        self._lock, self._files = threading.Lock(), OrderedDict()

    def get(self, path: str) -> _OpenFile:
        with self._lock:
            file = self._files.get(path)
            if file is not None:
                self._files.move_to_end(path)
                return file
        file = _OpenFile(path)
        with self._lock:
            self._files[path] = file
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def forget(self, path: str):
        with self._lock:
            self._files.pop(path, None)


_files = _Files()


def _pread(file: _OpenFile, start: int, end: int) -> bytes:
    parts = []
    while start < end:  # one call reads 2 GiB at most
        part = os.pread(file.descriptor, end - start, start)
        if not part:
            break
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: of several processes one goes on and the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system when the process ends
        yield


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which some are only found out by trying."""
    try:
        probe = folder / f".clip_jax_probe_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _glob_in_literal_folder(self, pattern: str):
    """`epath.Path.glob`, but only `pattern` may hold wildcards, as in `pathlib`.

    epath takes the folder's own name for a part of the pattern. Orbax merges a checkpoint's files
    by such a glob, so a checkpoint below a folder called run[1] could never be read.
    """
    if "**" in pattern:
        raise NotImplementedError(f"{pattern!r}: ** is not supported")
    for found in self._backend.glob(self._PATH.join(glob.escape(self._path_str), pattern)):
        yield self._new(found)


gpath.PosixGPath.glob = _glob_in_literal_folder


def atomic_write(path: str | os.PathLike, content: bytes | str):
    """Write a file, text in UTF-8, so that neither a reader nor a crash ever meets half of it.

    The folder is made if it is not there.
    """
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path):
        path.write_bytes(data)  # a bucket's object appears when it is complete
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def user_cache() -> Path:
    """The folder for what can be made again: $XDG_CACHE_HOME/clip_jax, or ~/.cache/clip_jax.

    Where that cannot be written, as in containers without a home, it is a folder of this process.
    """
    named = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.expanduser(named)) / "clip_jax"
    if folder.is_absolute():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    return _temporary_cache(str(folder))


@functools.cache
def _temporary_cache(absent: str) -> Path:
    # A name that others can guess would let them put programs there for this process to run.
    folder = tempfile.mkdtemp(prefix="clip_jax_cache_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    logging.warning("%s cannot be written: set XDG_CACHE_HOME to keep compiled programs", absent)
    return Path(folder)

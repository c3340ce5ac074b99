"""Local paths and URLs: list, read ranges with retries, write atomically, lock, cache."""

import atexit
import concurrent.futures
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import fsspec
from absl import logging
from etils import epath

from clip_jax.storage import literal_globs as _literal_globs  # noqa: F401  checkpoints are read by such globs
from clip_jax.storage import ranges, refusals
from clip_jax.storage.open_files import OpenFiles, pread
from clip_jax.storage.ranges import Changed, FileInfo, is_web
from clip_jax.storage.refusals import NoRanges

T = TypeVar("T")

RETRY_DELAYS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between the tries
LISTING_THREADS = 32
LISTED_FROM = 8  # files of a folder from which listing it is quicker than asking for each
LISTING_S = 10.0  # for which a listing is kept


class Refused(OSError):
    """The storage answers, and its answer is no: asking again does not help."""


class Failed(OSError):
    """What has been tried often enough."""


def is_url(path: str) -> bool:
    """Whether fsspec reads it, rather than the operating system."""
    return "://" in path


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
    if is_web(path):
        return ranges.is_served(path)
    filesystem, name = fsspec.core.url_to_fs(path)
    return bool(retry(lambda: filesystem.isfile(name), path))


def refuse_unless_missing(path: str):
    """Raise what a web server says of a file that it does not give, unless it says that there is none.

    Raises:
      Refused: it forbids the file.
      Failed: its answer is another one.
    """
    if is_web(path):
        with contextlib.suppress(FileNotFoundError):
            retry(lambda: ranges.fresh_info(path), path, patient=False)


def stat(paths: Sequence[str]) -> list[FileInfo]:
    """Size and version of each file."""
    if len(paths) == 1:
        return [_stat(paths[0])]
    if len(paths) >= LISTED_FROM and is_url(paths[0]) and not is_web(paths[0]):
        places = [path.rpartition("/")[::2] for path in paths]
        known = {folder: listing(folder) for folder in {folder for folder, _ in places}}
        if all(name in known[folder] for folder, name in places):
            return [known[folder][name] for folder, name in places]
    with concurrent.futures.ThreadPoolExecutor(LISTING_THREADS) as pool:
        return list(pool.map(_stat, paths))


def _stat(path: str) -> FileInfo:
    if not is_url(path):
        found = os.stat(path)
        return FileInfo(found.st_size, str(found.st_mtime_ns))

    return retry(lambda: ranges.fresh_info(path), path)


def listing(folder: str) -> dict[str, FileInfo]:
    """The files right below a folder of a bucket by name, of which one request tells a thousand.

    One that is a few seconds old is not asked for again.
    """
    asked, found = _listings.get(folder, (-LISTING_S, {}))
    if time.monotonic() - asked < LISTING_S:
        return found

    def ask() -> dict[str, FileInfo]:
        filesystem, name = fsspec.core.url_to_fs(folder)
        try:
            found = filesystem.ls(name, detail=True, refresh=True)
        except FileNotFoundError:  # an answer, not a failure
            return {}
        filesystem.invalidate_cache(name)  # there is a copy here, and others want what is there now
        files = (info for info in found if info["type"] == "file")
        return {info["name"].rpartition("/")[2]: ranges.file_info(info) for info in files}

    found = retry(ask, folder)
    _listings.clear()
    _listings[folder] = (time.monotonic(), found)
    return found


def read_range(path: str, start: int, end: int, *, info: FileInfo | None = None) -> bytes:
    """Bytes `start` to `end` of a file, fewer where it ends before; failures are tried again.

    Args:
      path: a path or a URL.
      start: the first byte.
      end: the byte after the last one.
      info: what the file was; then all of the bytes come, of the file that it was, or an error.

    Raises:
      OSError: it still fails after all tries; the message names the file.
      Changed: the file has another length or version than `info` says.
      NoRanges: the server sends the file from its beginning, whatever is asked for.
    """
    if start >= end:
        return b""

    def read() -> bytes:
        if not is_url(path):
            data, held = pread(_files.get(path), start, end), False
        else:
            data, held = ranges.request(path, start, end, info)
        if len(data) > end - start:
            raise NoRanges(path)
        short = info is not None and len(data) < min(end, info.size) - start
        if info is not None and (short or not held):
            ranges.refuse_changed(path, info, _stat(path))
        if short:  # not because the file is: the answer was cut off, and is asked for again
            raise OSError(f"{len(data)} bytes came of {end - start}")
        return data

    return retry(read, path, renew=is_url(path))


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

    return retry(lambda: ranges.request_whole(url), url, patient=patient)


def retry(action: Callable[[], T], path: str, *, patient: bool = True, renew: bool = False) -> T:
    """Do it, again after each of RETRY_DELAYS while it fails, and name `path` when it will not.

    With `renew`, credentials that have expired are looked for again.
    """
    delays, began = RETRY_DELAYS if patient else (), time.monotonic()
    for number in range(len(delays) + 1):
        try:
            return action()
        # The clients of clouds have exception types of their own, of which a few are OSErrors.
        except Exception as error:
            if isinstance(error, ValueError | TypeError | ImportError | Changed | Failed | Refused):
                raise
            _files.forget(path)
            expired = renew and refusals.is_expired(error)
            if expired:  # so that the client is made again, with the credentials of now
                type(fsspec.core.url_to_fs(path)[0]).clear_instance_cache()
            refused = refusals.is_refusal(error) and not expired
            missing = isinstance(error, FileNotFoundError)
            if number == len(delays) or refused or (missing and is_url(path)):
                kind = FileNotFoundError if missing else Failed
                raise (Refused if refused else kind)(
                    f"{path} cannot be read, after {number + 1} tries in {time.monotonic() - began:.0f} s: "
                    f"{refusals.said(error)}"
                ) from error
            logging.warning("Reading %s failed (%s); trying again.", path, refusals.said(error))
            time.sleep(delays[number])
    raise AssertionError("the loop returns or raises")


_files = OpenFiles()
_listings: dict[str, tuple[float, dict[str, FileInfo]]] = {}


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`: one of several processes proceeds, the others wait."""
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


def atomic_write(path: str | os.PathLike, content: bytes | str):
    """Write a file, text in UTF-8, and its folder: neither a reader nor a crash ever meets half of it."""
    path = epath.Path(path)
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(path):
        path.write_bytes(data)  # a bucket's object appears when it is complete
        return
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: os.PathLike) -> Iterator[Path]:
    """A file to write, which takes the place of `path` at the end, or is gone if that is not reached."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # of a disk that is full: it would stay so
            os.unlink(partial)


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

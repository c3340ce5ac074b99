"""One request for a range of a file behind a URL, of the version of the file that is known."""

import functools
import re
from typing import NamedTuple

import fsspec

from clip_jax.storage.refusals import NoRanges

RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?:(?P<total>\d+)|\*)")
STALLED_S = (30.0, 1e6)  # a request takes at most so long, and a second for so many bytes
ASKED_S = 10.0  # in which a web server says what a file is
PARTS_OF_SECONDS = re.compile(r"(?<=:\d\d)\.\d+")  # which listings may say and other answers not
VERSIONS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "generation", "Last-Modified")  # fmt: skip


class FileInfo(NamedTuple):
    """What tells that a file has changed."""

    size: int  # bytes
    version: str  # modification time in ns; of a URL what its server offers


class Changed(OSError):
    """A file that is not the one that it was when it was first looked at."""

    def __init__(self, path: str, was: object, now: object):
        super().__init__(
            f"{path} has changed while it was in use: it was {was} and is {now}. Bring its index up to "
            "date with `clip-jax data index SOURCE`, and give a run that resumes the data it had"
        )


def is_web(path: str) -> bool:
    """Whether a URL is of a web server, which has no folders that could be listed."""
    return path.startswith(("http://", "https://"))


def file_info(info: dict) -> FileInfo:
    """What a file system says of a file."""
    return FileInfo(info["size"], str(next((info[k] for k in VERSIONS if info.get(k)), "")))


def fresh_info(url: str) -> FileInfo:
    """Size and version of a file as they are now, not as they were when its folder was listed."""
    info = _ask(url)
    if info["size"] is None:  # as of web servers that compress what they send
        raise NoRanges(url)
    return file_info(info)


def is_served(url: str) -> bool:
    """Whether a web server has a file and answers in time."""
    try:
        _ask(url)
    except Exception:  # of which a client has types of its own
        return False
    return True


def request(url: str, start: int, end: int, info: FileInfo | None) -> tuple[bytes, bool]:
    """The bytes, and whether the answer itself was held to be of the version in `info`."""
    filesystem, name = fsspec.core.url_to_fs(url)
    if not filesystem.async_impl:
        return filesystem.cat_file(name, start=start, end=end), False
    quiet_s, rate = STALLED_S
    options: dict = {"timeout": quiet_s + (end - start) / rate}
    sync, loop = fsspec.asyn.sync, filesystem.loop
    if is_web(url):
        found = sync(loop, _web_range, filesystem, name, start, end, info, **options)
        return _behind_the_end(url, start, info) if found is None else found, True
    generation = _generation(url, info) if url.startswith(("gs://", "gcs://")) else None
    if generation:
        options["generation"] = generation
    try:
        return sync(loop, filesystem._cat_file, name, start, end, **options), bool(generation)
    except FileNotFoundError:
        if generation:  # what has been overwritten is not there under its old number
            refuse_changed(url, info, fresh_info(url))
        raise


def is_same(was: FileInfo, now: FileInfo) -> bool:
    """Whether a file is what it was; a version that is not said may be any."""
    before, after = (PARTS_OF_SECONDS.sub("", info.version) for info in (was, now))
    return was.size == now.size and not (before and after and before != after)


def refuse_changed(path: str, was: FileInfo, now: FileInfo):
    """Raises Changed if a file is another one."""
    if not is_same(was, now):
        raise Changed(path, was, now)


def request_whole(url: str) -> bytes:
    """All of a file behind a URL."""
    filesystem, name = fsspec.core.url_to_fs(url)  # some connect here
    if not is_web(url):
        return filesystem.cat_file(name)
    import aiohttp  # which fsspec has imported by now

    quiet = aiohttp.ClientTimeout(total=None, sock_connect=STALLED_S[0], sock_read=STALLED_S[0])
    read = functools.partial(filesystem._cat_file, name, timeout=quiet)
    return fsspec.asyn.sync(filesystem.loop, read)


_generations: dict[str, tuple[FileInfo, str | None]] = {}


def _generation(url: str, info: FileInfo | None) -> str | None:
    """The number of the version in `info` in Google's storage, which sends no other when it is asked by it."""
    if info is None or not info.version:
        return None
    if _generations.get(url, (None,))[0] != info:
        found = _ask(url)
        refuse_changed(url, info, file_info(found))
        _generations[url] = info, found.get("generation")
    return _generations[url][1]


def _ask(url: str) -> dict:
    filesystem, name = fsspec.core.url_to_fs(url)
    if is_web(url):
        return fsspec.asyn.sync(filesystem.loop, _web_info, filesystem, name)
    filesystem.invalidate_cache(filesystem._parent(name))  # gcsfs and s3fs answer from listings
    return filesystem.info(name)


async def _web_info(filesystem, url: str) -> dict:
    """Size and version of a file of a web server; some answer GET alone, or say no length to HEAD."""
    session = await filesystem.set_session()
    settings = {"timeout": ASKED_S, "allow_redirects": True, **filesystem.kwargs}
    headers = {**settings.pop("headers", {}), "Accept-Encoding": "identity"}
    info, failure = {"size": None}, None
    for method in ("HEAD", "GET"):
        try:
            asked = session.request(method, filesystem.encode_url(url), headers=headers, **settings)
            async with asked as answer:
                filesystem._raise_not_found_for_status(answer, url)
                length = answer.headers.get("Content-Length")
                if answer.headers.get("Content-Encoding", "identity") not in ("identity", ""):
                    length = None  # of what is compressed
                known = {name: answer.headers[name] for name in VERSIONS if name in answer.headers}
                info, failure = {**known, "size": int(length) if length else None}, None
        except TimeoutError:  # GET would not be answered either
            raise
        except Exception as error:
            failure = error
        if info["size"] is not None:
            break
    if failure is not None:
        raise failure
    return info


def _behind_the_end(url: str, start: int, info: FileInfo | None) -> bytes:
    """Nothing, of a range of which a server says that it begins behind the end, if that is so."""
    now = fresh_info(url)
    if info is not None:
        refuse_changed(url, info, now)
    if start < now.size:
        raise NoRanges(url, f"416 for byte {start} of {now.size}")
    return b""


async def _web_range(
    filesystem, url: str, start: int, end: int, info: FileInfo | None
) -> bytes | None:
    """A range of a file of a web server, which must say that it sends that range and no other.

    fsspec takes the beginning of the file for it where a server ignores the header. None where the
    server says that it begins behind the end.
    """
    session = await filesystem.set_session()
    settings = dict(filesystem.kwargs)
    asked = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    headers = {**settings.pop("headers", {}), **asked}
    async with session.get(filesystem.encode_url(url), headers=headers, **settings) as answer:
        if answer.status == 416:
            return None
        filesystem._raise_not_found_for_status(answer, url)
        span = RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
        if answer.status != 206 or span is None or int(span["first"]) != start:
            raise NoRanges(url, f"{answer.status} for byte {start}")
        if info is not None:
            now = FileInfo(int(span["total"] or info.size), _web_version(answer.headers, info))
            refuse_changed(url, info, now)
        total = int(span["total"] or max(end, int(span["last"]) + 1))
        last = min(int(span["last"]), total - 1)
        data = await answer.read()
    # A server may send less than it was asked for, and say so.
    expected = max(last + 1, min(end, total)) - start
    if len(data) != expected:
        raise OSError(f"{len(data)} bytes came of {expected}")
    return data[: end - start]


def _web_version(headers, was: FileInfo) -> str:
    """What an answer says of the kind of version that is known, a tag or a date."""
    return headers.get("Last-Modified" if was.version.endswith("GMT") else "ETag", "")

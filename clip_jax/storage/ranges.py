"""One request for a range of a file behind a URL, of the version of the file that is known."""

import re
from typing import NamedTuple

import fsspec

from clip_jax.storage.refusals import NoRanges

RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?:(?P<total>\d+)|\*)")
STALLED_S = (30.0, 1e6)  # a request takes at most so long, and a second for so many bytes
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


def request(url: str, start: int, end: int, info: FileInfo | None) -> tuple[bytes, bool]:
    """The bytes, and whether the answer itself was held to be of the version in `info`."""
    filesystem, name = fsspec.core.url_to_fs(url)
    if not filesystem.async_impl:
        return filesystem.cat_file(name, start=start, end=end), False
    quiet_s, rate = STALLED_S
    options: dict = {"timeout": quiet_s + (end - start) / rate}
    sync, loop = fsspec.asyn.sync, filesystem.loop
    if is_web(url):
        return sync(loop, _web_range, filesystem, name, start, end, info, **options), True
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
    filesystem.invalidate_cache(filesystem._parent(name))  # gcsfs and s3fs answer from listings
    try:
        return filesystem.info(name)
    except FileNotFoundError as error:  # fsspec says it of any answer of a web server
        cause = error.__cause__ or error
        raise (error if getattr(cause, "status", 0) == 404 else cause) from None


async def _web_range(filesystem, url: str, start: int, end: int, info: FileInfo | None) -> bytes:
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

"""Files that are there in full or not at all, on a disk or in a bucket; and where caches lie."""

import os
from pathlib import Path

from etils import epath


def write_whole(path: str | os.PathLike, content: bytes | str):
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
    """The folder for what can be made again: $XDG_CACHE_HOME/clip_jax, or ~/.cache/clip_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clip_jax"

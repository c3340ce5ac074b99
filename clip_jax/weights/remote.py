"""Released weights behind a URL: copied to this machine once, and again when they have changed."""

import logging
import os
import shutil
from pathlib import Path, PurePosixPath

import fsspec
import xxhash

from clip_jax import storage
from clip_jax.redaction import redact
from clip_jax.storage import user_cache

log = logging.getLogger(__name__)

BESIDE = {".json", ".txt", ".model", ".jinja"}  # configs and tokenizers


def local_copy(url: str, weights: tuple[str, ...]) -> Path:
    """The file or the folder at `url`, in clip_jax/weights in the user's cache folder.

    Of a folder, which may hold the same weights in several formats, the first of `weights` that it
    has is copied, its shards with it; configs and tokenizers come along, also with a single file.

    Args:
      url: any of fsspec's (gs://, s3://, hf://, https://); of a web server one file only.
      weights: names of files of weights, the preferred one first.

    Raises:
      FileNotFoundError: there is nothing, or a folder without any of `weights`.
      OSError: it cannot be read, or the disk is full; nothing half-copied is left behind.
    """
    shown = redact(url)
    wanted, chosen = _wanted(url, weights, shown)
    states = storage.stat(wanted)
    digest = xxhash.xxh3_64_hexdigest(repr([url, wanted, states]).encode())
    folder = user_cache() / "weights" / digest
    with storage.exclusive(folder.with_suffix(".lock")):  # several processes may start together
        if not folder.exists():
            size = sum(state.size for state in states)
            log.info("%s: copying %.0f MB to %s", shown, size / 1e6, folder)
            _copy(wanted, folder, states)
    return folder / chosen if chosen else folder


def _wanted(url: str, weights: tuple[str, ...], shown: str) -> tuple[list[str], str | None]:
    """The files to copy, and which of them `url` names (None: their folder)."""
    if storage.is_web(url):
        return [url], PurePosixPath(url.partition("?")[0]).name
    filesystem, path = fsspec.core.url_to_fs(url)
    one = storage.is_file(url)
    place = path.rpartition("/")[0] if one else path

    def listing() -> list[str]:
        return sorted(e["name"] for e in filesystem.ls(place, detail=True) if e["type"] == "file")

    found = storage.retry(listing, shown) if one or storage.is_folder(url) else []
    files = {name.rpartition("/")[2]: filesystem.unstrip_protocol(name) for name in found}
    chosen = path.rpartition("/")[2] if one else next((n for n in weights if n in files), None)
    if chosen is None:
        has = f"holds none of {', '.join(weights)}" if files else "is not there"
        if "modules.json" in files:
            has += (
                "; it is of sentence-transformers: load the folder of its CLIP model (0_CLIPModel)"
            )
        raise FileNotFoundError(f"{shown} {has}")
    sharded = chosen.endswith(".index.json")
    names = [
        name
        for name in files
        if name == chosen
        or PurePosixPath(name).suffix in BESIDE
        or (sharded and name.startswith(chosen.partition(".")[0] + "-"))
    ]
    return [files[name] for name in names], chosen if one else None


def _copy(urls: list[str], folder: Path, states: list[storage.FileInfo]):
    """All of the files as they were, or none."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        for url, state in zip(urls, states):
            filesystem, path = fsspec.core.url_to_fs(url)
            target = partial / PurePosixPath(path.partition("?")[0]).name
            storage.retry(lambda fs=filesystem, a=path, b=target: fs.get_file(a, os.fspath(b)), url)
            now, size = storage.stat([url])[0], target.stat().st_size
            if size != state.size or not storage.ranges.is_same(state, now):
                raise OSError(
                    f"{redact(url)} changed while it was copied, from {state.size} bytes to {now.size}, of "
                    f"which {size} came: load it again"
                )
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

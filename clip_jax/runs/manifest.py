"""Checksums of a checkpoint's files: orbax restores a flipped bit without an error, so we look first."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from clip_jax.storage.checksums import file_checksum

NAME = "MANIFEST.json"
# The marks of the commit itself: written after the manifest, and empty of anything to restore.
_WRITTEN_LATER = frozenset({NAME, "_CHECKPOINT_METADATA", "commit_success.txt"})
_THREADS = 4  # xxhash and file reads let go of the interpreter


def write(directory: epath.Path):
    """Put the size and the checksum of every file below `directory` into its manifest."""
    names = sorted(_files(directory))
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(lambda name: file_checksum(directory / name), names))
    content = {"algorithm": "xxh3_128", "files": dict(zip(names, sums))}
    (directory / NAME).write_text(json.dumps(content, indent=1))


def damage(directory: epath.Path, *, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a checkpoint, in one phrase, or None when every byte is as it was saved.

    Several processes share the reading: number `part` of `parts` looks at its share of the files.
    """
    try:
        files = json.loads((directory / NAME).read_text())["files"]
        listed = [(name, size, checksum) for name, (size, checksum) in sorted(files.items())]
    except FileNotFoundError:
        return f"it has no {NAME}, so it was never completed"
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{NAME} cannot be read ({type(error).__name__})"

    def check(item: tuple[str, int, str]) -> str | None:
        name, size, checksum = item
        path = directory / name
        try:
            found = path.stat().length
            if found != size:
                return f"{name} has {found} bytes where {size} were saved"
            if file_checksum(path) != [size, checksum]:
                return f"{name} has other bytes than were saved"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = pool.map(check, listed[part::parts])
        return next((problem for problem in problems if problem), None)


def _files(directory: epath.Path, prefix: str = "") -> Iterable[str]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif path.name not in _WRITTEN_LATER or prefix:
            yield prefix + path.name

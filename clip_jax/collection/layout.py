"""The files of an embedded collection: their names, the record of each part, the manifest.

Vectors and metadata lie as clip-retrieval writes them (its clip_inference/writer.py) and as autofaiss
reads them: a folder for each kind, parts whose names sort in their order.
"""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import xxhash
from etils import epath

from clip_jax.storage import atomic_write

MANIFEST = "manifest.json"  # there when all parts are
SETTINGS = "settings.json"  # there from the start: what all parts must have in common
FOLDERS = {"image": "img_emb", "text": "text_emb"}
METADATA, RECORDS = "metadata", "records"
BAD_SAMPLES = "bad_samples.jsonl"
DIGITS = 4  # of a part's number, at least


class Part(NamedTuple):
    """A range of samples of the source whose rows lie in one file of each kind."""

    number: int
    first: int
    last: int  # one behind its last sample


class Layout:
    """Where the files of a collection lie below `root`, a path or a URL."""

    def __init__(self, root: str, parts: int):
        self.root = epath.Path(root).expanduser()
        self._digits = max(DIGITS, len(str(max(0, parts - 1))))

    def vectors(self, kind: str, part: int) -> str:
        """The name of a part's vectors, from the root on."""
        folder = FOLDERS[kind]
        return f"{folder}/{folder}_{part:0{self._digits}d}.npy"

    def metadata(self, part: int) -> str:
        return f"{METADATA}/{METADATA}_{part:0{self._digits}d}.parquet"

    def record(self, part: int) -> str:
        return f"{RECORDS}/{part:0{self._digits}d}.json"

    def write(self, name: str, data: bytes) -> list:
        """Write a file and return its size and checksum."""
        atomic_write(self.root / name, data)
        return checksum(data)

    def commit(self, part: Part, record: dict):
        """Say that the files of a part are all there, which is the last thing written of it."""
        atomic_write(self.root / self.record(part.number), json.dumps(record, indent=1) + "\n")

    def read_record(self, part: Part, settings: str) -> dict | None:
        """The record of a part if it is complete and every byte is as it was written, or None."""
        try:
            record = json.loads((self.root / self.record(part.number)).read_text())
            if record["settings"] != settings or record["samples"] != [part.first, part.last]:
                return None
            for name, expected in record["files"].items():
                path = self.root / name
                if path.stat().length != expected[0] or checksum(path.read_bytes()) != expected:
                    return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record

    def remove_partial_files(self):
        """Remove what a killed process has begun to write. No other may be writing."""
        for folder in (*FOLDERS.values(), METADATA, RECORDS, "."):
            path = self.root / folder
            for file in path.iterdir() if path.is_dir() else ():
                if file.name.endswith(".partial"):
                    file.unlink()


def checksum(data: bytes) -> list:
    """Number of bytes and xxh3_128."""
    return [len(data), xxhash.xxh3_128_hexdigest(data)]


def parts_of(samples: int, part_size: int) -> list[Part]:
    """All parts of a source with so many samples."""
    return [
        Part(number, first, min(first + part_size, samples))
        for number, first in enumerate(range(0, samples, part_size))
    ]


def differences(old: dict, new: dict, prefix: str = "") -> Iterator[str]:
    """The settings in which two collections differ, each with both values."""
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name} ({one!r} there, {other!r} now)"


def manifest(settings: dict, records: Sequence[dict]) -> dict:
    """What a reader needs to know of a complete collection."""
    bad = [one for record in records for one in record["bad"]]
    reasons: dict[str, int] = {}
    for one in bad:
        reasons[one["reason"]] = reasons.get(one["reason"], 0) + 1
    return {
        **settings,
        "rows": sum(record["rows"] for record in records),
        "bad_samples": {"bad": len(bad), "by_reason": dict(sorted(reasons.items()))},
        "algorithm": "xxh3_128",
        "parts": [
            {name: record[name] for name in ("samples", "rows", "files")} for record in records
        ],
    }

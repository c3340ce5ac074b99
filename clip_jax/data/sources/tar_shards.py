"""Which shards of a place are read, how their texts are meant, and what is missing from damaged ones."""

from collections.abc import Sequence

from clip_jax import storage
from clip_jax.data.sources.patterns import expand_folder
from clip_jax.data.sources.tar_scan import Shard

# Compressed shards are named as unusable and counted, rather than left out of a folder.
ENDINGS = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4",
)  # fmt: skip
DATASET_TYPE = "dataset_type.txt"  # beside or above the shards of CLIP_benchmark's sets


def expand_shards(location: str) -> tuple[list[str], str | None]:
    """The shards that a pattern or a folder names, and what is left out of a folder."""
    return expand_folder(location, ENDINGS)


def is_retrieval(folder: str) -> bool:
    """Whether it is a set for retrieval in CLIP_benchmark's layout, with captions line by line."""
    folder = folder or "."
    above = folder.rpartition("/")[0] if storage.is_url(folder) else f"{folder}/.."
    if storage.is_web(folder):
        return False
    for place in (folder, above):
        path = f"{place}/{DATASET_TYPE}"
        if storage.is_file(path):
            return b"retrieval" in storage.read_file(path).lower()
    return False


def count_lost(shards: Sequence[Shard]) -> int:
    """Samples that are missing from shards that are damaged or cannot be used.

    Each is expected to hold as many as a whole one in the mean, and a damaged one lacks one at
    least.
    """
    whole = [shard.samples for shard in shards if shard.samples and not shard.damage]
    found = whole or [shard.samples for shard in shards if shard.samples]
    mean, lost = sum(found) / len(found), 0.0
    for shard in shards:
        if shard.damage or not shard.samples:
            lost += max(mean - shard.samples, bool(shard.damage))
    return round(lost)

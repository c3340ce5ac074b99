"""Training and test files in one folder, distinguished by their names."""

import os
import re
from collections import Counter
from collections.abc import Collection, Sequence

from clip_jax.data.samples import Split

KINDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
NAME = re.compile(rf"(?:^|[-_./])({'|'.join(KINDS)})(?:20\d\d)?(?=[-_./]|\d|$)", re.IGNORECASE)
# Words beside them in the names of folders.
FILLERS = {
    "set", "images", "image", "imgs", "img", "data", "dataset", "split", "samples", "pairs", "photos",
    "pictures",
}  # fmt: skip
TESTS = ("test", "validation")  # the first that is there is evaluated on


def is_split(name: str) -> bool:
    """Whether a folder is called as a split is: train, val, train2017, test_images, ..."""
    words = re.split(r"[-_. ]", name.lower())
    kinds = [word for word in words if re.fullmatch(rf"({'|'.join(KINDS)})(20\d\d)?", word)]
    return bool(kinds) and all(word in kinds or word in FILLERS for word in words)


def refuse_folders(root: str, folders: Collection[str], nested: Collection[str]):
    """Refuse a folder that holds splits, each of which would be read as a class.

    Args:
      root: the folder.
      folders: what is in it.
      nested: those of them that hold folders themselves.

    Raises:
      ValueError: several folders are called as splits are, or one that holds folders or has a
        year or a second word in its name. A single one called "train" may be a class of vehicles.
    """
    named = sorted(filter(is_split, folders))
    alone = len(named) == 1 and len(folders) > 1
    if not named or (alone and named[0].lower() in KINDS and named[0] not in nested):
        return
    raise ValueError(
        f"{root} has folders called {', '.join(named)}, which are no classes: name one of them, such "
        f"as folder:{root}/{named[0]}"
    )


def choose(paths: Sequence[str], split: Split, *, name: str) -> tuple[list[str], str | None]:
    """The files of a split, and a note on skipped files, if any.

    Files whose names say no split, or all the same one, are all taken.

    Raises:
      ValueError: only some of the names say a split, or none says the one that is wanted.
    """
    kinds = _kinds(paths)
    counts = Counter(kinds)
    if len(counts) == 1:
        return list(paths), None
    if None in counts:
        first = next(path for path, kind in zip(paths, kinds) if kind is None)
        found = ", ".join(sorted(kind for kind in counts if kind))
        raise ValueError(
            f"{name}: the names of {len(paths) - counts[None]} files say {found} and those of "
            f"{counts[None]} say no split, such as {first}: name the files of one split by a pattern"
        )
    wanted = "train" if split == "train" else next(filter(counts.get, TESTS), None)
    if wanted not in counts:
        raise ValueError(
            f"{name} has no {split} files, only {' and '.join(sorted(counts))}: name the files to be "
            "read by a pattern"
        )
    others = ", ".join(f"{count} {kind}" for kind, count in counts.items() if kind != wanted)
    chosen = [path for path, kind in zip(paths, kinds) if kind == wanted]
    return chosen, f"{len(chosen)} {wanted} files are read; of other splits: {others}"


def has_test(paths: Sequence[str]) -> bool:
    """Whether the names tell training files from test files."""
    kinds = set(_kinds(paths))
    return "train" in kinds and None not in kinds and bool(kinds.intersection(TESTS))


def _kinds(paths: Sequence[str]) -> list[str | None]:
    """The split that the name of each file says, or else the folder below their common one."""
    common = os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0])
    return [_kind(path[len(common) :]) for path in paths]


def _kind(path: str) -> str | None:
    for part in reversed(path.split("/")):
        found = NAME.search(part)
        if found:
            return KINDS[found[1].lower()]
    return None

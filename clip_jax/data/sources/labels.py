"""Data with labels: the names of the classes beside it, and what stands for missing captions."""

import re
from collections.abc import Iterable, Sequence

from absl import logging

from clip_jax import storage
from clip_jax.data.samples import Source
from clip_jax.storage.json_text import parse_json

CLASSNAMES = "classnames.txt"
BELOW = re.compile(r"-[0-9]{1,9}(\.0+)?")  # what has no label in sets whose labels are numbers
DIGITS = re.compile(r"([0-9]{1,9})(\.0+)?")  # pandas writes 3.0 where a column has gaps


def parse_label(value) -> int | None:
    """A label out of a number or its digits; None for anything else and below zero."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        found = DIGITS.fullmatch(value.strip())
        return int(found[1]) if found else None
    if isinstance(value, float) and value.is_integer():  # as pandas has a column with gaps
        value = int(value)
    is_label = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_label else None


def class_names(folder: str, keys: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """What classnames.txt in a folder, or in the one above, says; None where there is no such file.

    A line is the name of a class, or KEY<TAB>NAME. The names come in the order of `keys`, which are
    the folders of classes, or else in the order of the lines.

    Raises:
      ValueError: the file does not name all of `keys`.
    """
    path = next((path for path in _places(folder) if storage.is_file(path)), None)
    if path is None:
        return None
    try:
        text = storage.read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    lines = [line.strip("\r ") for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: write the name of a class on each line")
    entries = [line.partition("\t") for line in lines]
    tabs = [bool(tab) for _, tab, _ in entries]
    if any(tabs) and not all(tabs):
        raise ValueError(
            f"{path} has a tab in {sum(tabs)} of {len(tabs)} lines, and none in {lines[tabs.index(False)]!r}: "
            "write FOLDER<TAB>NAME in each line, or the name alone"
        )
    if not any(tabs):
        if keys is not None:
            check_order(lines, keys, path)
        return tuple(lines)
    named = {key.strip(): name.strip() for key, _, name in entries}
    missing = [key for key in keys or () if key not in named]
    if missing:
        raise ValueError(
            f"{path} has no name for {len(missing)} of {len(keys)} folders of classes "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); add FOLDER<TAB>NAME"
        )
    return tuple(named[key] for key in keys) if keys is not None else tuple(named.values())


def check_order(names: Sequence[str], folders: Sequence[str], where: str):
    """Refuse names, one for each class folder in its order, that do not fit the folders.

    Raises:
      ValueError: there are more or fewer of them, one is the name of another folder, or the order
        of the folders is not the one that a person would write them in.
    """
    mend = f"write FOLDER<TAB>NAME lines into {CLASSNAMES} beside the folders"
    if len(names) != len(folders):
        raise ValueError(
            f"{where} names {len(names)} classes and there are {len(folders)} folders of classes: "
            f"write a line for each, in the order of the folders' names, or {mend}"
        )
    place_of = {_plain(folder): place for place, folder in enumerate(folders)}
    for place, name in enumerate(names):
        if place_of.get(_plain(name), place) != place:
            raise ValueError(
                f"{where} names the class folder {folders[place]} {name!r}, as another folder is "
                f"called: {mend}"
            )
    by_number = sorted(folders, key=_by_number)
    if list(folders) != by_number:
        place = next(i for i, folder in enumerate(folders) if folder != by_number[i])
        raise ValueError(
            f"{where} does not say whether {by_number[place]} or {folders[place]} is the class folder "
            f"of its line {place + 1}, the order being by number or by letters: {mend}"
        )


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _by_number(folder: str) -> str:
    """A key that sorts class2 before class10."""
    return re.sub(r"[0-9]+", lambda found: found[0].zfill(20), folder)


def _places(folder: str) -> list[str]:
    folder = folder.rstrip("/") or "."
    above = folder.rpartition("/")[0] if storage.is_url(folder) else f"{folder}/.."
    return [f"{folder}/{CLASSNAMES}", f"{above}/{CLASSNAMES}"]


def hugging_face_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel, which Hugging Face writes into a Parquet file's schema."""
    try:
        feature = parse_json((metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(str(name).replace("_", " ") for name in feature["names"])
    except (KeyError, TypeError, ValueError):
        return None


class ListLabels:
    """The labels of a list by what stands in its label column: whole numbers, or names of classes.

    A column that is only called like one of labels, and holds something else, has no labels, unless
    a setting `asked` for it: then its values are the names of the classes.
    """

    def __init__(self, values: Iterable[str], *, asked: bool):
        values = sorted(filter(None, values))
        found = {text: parse_label(text) for text in values}
        odd = [text for text, label in found.items() if label is None and not BELOW.fullmatch(text)]
        self.odd = odd[0] if odd and not asked else None  # a value that is no label
        self.classes: tuple[str, ...] | None = None
        if odd and asked:
            self.classes = tuple(values)
            found = {name: place for place, name in enumerate(values)}
        self._labels = {} if self.odd is not None else found

    def __bool__(self) -> bool:
        return bool(self._labels)

    def __getitem__(self, text: str) -> int | None:
        return self._labels.get(text)


def unread(column: str | None, value) -> str:
    """A note on labels that are none, so that no accuracy is measured with them."""
    return (
        f"{column!r} holds {str(value)[:40]!r}, which is no number of a class: no label is read there. "
        f"data.label_column={column} takes the texts of a list or a table as names of classes"
    )


def stand_in(
    label: int | None, classes: Sequence[str] | None, *, training: bool
) -> tuple[str, ...]:
    """The captions of a sample that has none: the name of its class.

    A label without a name can still be evaluated with `evaluation.classes`: its caption is empty,
    which no retrieval counts.
    """
    if label is None:
        return ()
    if classes and label < len(classes):
        return (classes[label],)
    return () if training else ("",)


def check_names(source: Source, *, training: bool, captioned: bool):
    """Of a source with labels: refuse it where names are needed, warn where they may be.

    Raises:
      ValueError: for training there is nothing but labels without names.
    """
    if source.classes:
        return
    mend = f"write the name of each class into {CLASSNAMES} beside the data, a line a label"
    if training and not captioned:
        raise ValueError(f"{source.name} has no captions, only labels without names: {mend}")
    if not training:
        logging.warning(
            "%s has labels without names. For zero-shot accuracy %s, or set evaluation.classes.",
            source.name, mend,
        )  # fmt: skip

"""Finds the image and the caption columns of a table, whatever they are called, and reads the text."""

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

IMAGE_NAMES = (
    "image", "filepath", "file_path", "image_path", "file_name", "filename", "path", "jpg", "png",
    "webp", "img", "file", "image_bytes", "bytes", "image_name", "img_path", "image_file",
    "image_url", "url",
)  # fmt: skip
CAPTION_NAMES = (
    "caption", "captions", "text", "title", "txt", "description", "sentence", "sentences",
    "raw_text", "alt_text", "alt", "top_caption", "comment",
)  # fmt: skip
NUMBERED = re.compile(r"(caption|text|sentence|comment|description)[_.]?\d+")  # pandas has a dot
LABEL_NAMES = ("label", "cls", "class", "class_id")
# What programs write where a table has no value, as far as pandas reads it so.
MISSING = {"NaN", "nan", "None", "NULL", "null", "N/A", "n/a", "NA", "<NA>", "#N/A"}
NO_WIDTH = " \u200b\u200c\u200d\u2060\ufeff"  # characters that nobody sees
CHECKED = 1000  # captions that are looked at before a column is called numeric


def find_column(
    role: str, given: str | None, names: Sequence[str], columns: Sequence[str], *, where: str
) -> str:
    """The column that `given` names, or else the first known name among `columns`.

    `role` is "image" or "caption"; `where` is the file, for the message.
    """
    if given is not None:
        if given in columns:
            return given
        raise ValueError(
            f"{where} has no column {given!r} (data.{role}_column); its columns are "
            f"{', '.join(columns)}"
        )
    lowered = {column.lower().strip(): column for column in columns}
    for name in names:
        if name in lowered:
            return lowered[name]
    raise ValueError(
        f"{where} has no column that is known to hold the {role}; its columns are "
        f"{', '.join(columns)}. Name the right one with data.{role}_column"
    )


def find_label(given: str | None, columns: Sequence[str], *, where: str) -> str | None:
    """The label column that `given` names, or else the first known name, or None."""
    lowered = {column.lower().strip() for column in columns}
    if given is None and not lowered.intersection(LABEL_NAMES):
        return None
    return find_column("label", given, LABEL_NAMES, columns, where=where)


class NotText(ValueError):
    """A caption that is an object, a number or a truth value; it is never turned into text."""

    def __init__(self, value):
        self.kind = type(value).__name__
        self.fields = tuple(map(str, value)) if isinstance(value, Mapping) else ()
        super().__init__(f"a value of type {self.kind}")

    def message(self, column: str, *, where: str) -> str:
        """One line for a person, with the setting that mends it."""
        fields = f" with the fields {', '.join(self.fields[:8])}" if self.fields else ""
        mend = f"{column}.{self.fields[0]}" if self.fields else "the column with the text"
        return (
            f"{where}: the caption column {column!r} holds {self.kind}{fields}, not text; name the "
            f"right one with data.caption_column, such as {mend}"
        )


@dataclass(frozen=True)
class CaptionColumns:
    """The columns that captions are taken from, with the probability of each.

    `data.caption_column` names one, or several as in "caption=0.3,synthetic=0.7". A column may
    hold one text or a list of them, which then share its probability. "sentences.raw" is the field
    `raw` of a column of objects, or of lists of them.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None  # None: all captions are alike

    def texts(self, row: Mapping) -> list[list[str]]:
        """The captions of a row by column, without empty ones.

        Raises:
          NotText: a value is neither text nor missing.
        """
        return [
            texts_of(row[name] if name in row else _field(row, name.split(".")))
            for name in self.names
        ]

    def tops(self, columns: Sequence[str]) -> list[str]:
        """The columns of a table that hold them, whole."""
        return [name if name in columns else name.partition(".")[0] for name in self.names]

    def choose(self, texts: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], tuple | None]:
        """The captions and their probabilities, which add up to one without the empty columns."""
        captions = tuple(text for column in texts for text in column)
        if self.weights is None or not captions:
            return captions, None
        total = sum(weight for weight, column in zip(self.weights, texts) if column)
        shares = [
            weight / total / len(column)
            for weight, column in zip(self.weights, texts)
            for _ in column
        ]
        return captions, tuple(shares)


def parse_caption_columns(given: str) -> CaptionColumns:
    """What `data.caption_column` says.

    Raises:
      ValueError: a probability is not a number above zero, or only some columns have one.
    """
    names, weights = [], []
    for part in given.split(","):
        name, equals, weight = part.partition("=")
        names.append(name.strip())
        if not equals:
            continue
        if not _is_number(weight) or not 0 < float(weight) < float("inf"):
            raise ValueError(
                f"data.caption_column={given!r}: the probability {weight!r} of {name.strip()!r} must "
                "be a number above 0"
            )
        weights.append(float(weight))
    if len(weights) not in (0, len(names)):
        raise ValueError(
            f"data.caption_column={given!r} gives a probability to some columns only; write "
            "NAME=PROBABILITY for each, or for none"
        )
    return CaptionColumns(tuple(names), tuple(weights) or None)


def find_captions(
    given: str | None, columns: Sequence[str], *, where: str, optional: bool = False
) -> CaptionColumns:
    """The caption columns that `given` names, or else the first known name among `columns`.

    Where they are `optional`, there may be none.
    """
    lowered = {column.lower().strip() for column in columns}
    if given is None and not lowered.intersection(CAPTION_NAMES):
        numbered = tuple(name for name in columns if NUMBERED.fullmatch(name.lower().strip()))
        if numbered or optional:
            return CaptionColumns(numbered, None)
    if given is None or given in columns:
        name = find_column("caption", given, CAPTION_NAMES, columns, where=where)
        return CaptionColumns((name,), None)
    found = parse_caption_columns(given)
    for name in found.names:
        if name.partition(".")[0] not in columns:
            find_column("caption", name, CAPTION_NAMES, columns, where=where)
    return found


def unread(captions: CaptionColumns, given: str | None, columns: Sequence[str]) -> tuple[str, ...]:
    """Notes on columns that are called as captions or a split are, and not read."""
    others = [
        name
        for name in columns
        if (name.lower() in CAPTION_NAMES or NUMBERED.fullmatch(name.lower()))
        and name not in captions.tops(columns)
    ]
    notes = []
    if given is None and others:
        notes.append(
            f"columns that are not read: {', '.join(others)}; data.caption_column="
            f"{','.join((*captions.names, *others))} takes captions out of all of them"
        )
    notes += [
        f"rows of all splits are read: the column {name!r} is not looked at"
        for name in columns
        if name.lower() == "split"
    ]
    return tuple(notes)


def texts_of(value) -> list[str]:
    """The texts of one column of a row, without empty ones; None and NaN are missing.

    Raises:
      NotText: it is neither text nor missing.
    """
    if isinstance(value, str):
        text = " ".join(value.split())
        if text in MISSING or not text.strip(NO_WIDTH):
            return []
        if text[:1] in ("[", "(") and (written := _written_list(value)) is not None:
            return [one for part in written for one in texts_of(part)]
        return [text] if text else []
    if value is None or value != value:
        return []
    if isinstance(value, bytes):
        return texts_of(decode(value))
    if isinstance(value, list | tuple):
        return [text for one in value for text in texts_of(one)]
    raise NotText(value)


def _written_list(text: str) -> list[str | None] | None:
    """The texts of a list in JSON or in Python, as tables without a type for lists have it.

    NumPy writes no commas: ['one' 'two'] are two texts, which Python would take for one.
    """
    text = text.strip()
    if text[-1] not in ")]":
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list | tuple) and all(isinstance(one, str | None) for one in found):
            whole = read is json.loads or None in found
            return list(found) if whole else _literals(text)
    return None


def _literals(text: str) -> list[str]:
    """Every string literal of a piece of Python."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [ast.literal_eval(one.string) for one in tokens if one.type == tokenize.STRING]


def decode(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 where it says so with a byte order mark.

    Raises:
      UnicodeDecodeError: it is in another encoding, which nobody can know.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def _field(value, path: Sequence[str]):
    """The field of an object, or of each object of a list."""
    if not path:
        return value
    if isinstance(value, list | tuple):
        return [_field(one, path) for one in value]
    return _field(value.get(path[0]), path[1:]) if isinstance(value, Mapping) else None


def refuse_numbers(captions: Iterable[str], column: str, *, where: str):
    """Raise a ValueError if the first captions are all numbers, truth values or written objects."""
    seen = itertools.islice((text for text in captions if text.strip()), CHECKED)
    kinds = set(map(_kind, seen))
    if kinds and "text" not in kinds:
        raise ValueError(
            f"{where}: the caption column {column!r} holds {' and '.join(sorted(kinds))}, not text; "
            "name the right one with data.caption_column"
        )


def _kind(text: str) -> str:
    words = text.split()
    box = len(words) > 4  # a detector's class and box have five, a caption such as "7 11" has fewer
    if (box or len(words) == 1) and all(map(_is_number, words)):
        return "numbers"
    if text.lower() in ("true", "false"):
        return "truth values"
    return "objects" if _is_written_object(text) else "text"


def _is_written_object(text: str) -> bool:
    """Whether it is an object, or a list of them, in JSON or in Python."""
    if text[0] not in "{[" or text[-1] not in "}]":
        return False
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return isinstance(found, dict | set) or (isinstance(found, list) and bool(found))
    return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

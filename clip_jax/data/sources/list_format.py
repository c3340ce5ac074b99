"""How a list of images is written: separator, quotes, encoding, header, and one row after another."""

import codecs
import csv
import io
import itertools
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.images.formats import is_image
from clip_jax.data.sources.columns import CAPTION_NAMES, CHECKED, IMAGE_NAMES, NUMBERED
from clip_jax.data.sources.tar_members import what_it_is
from clip_jax.storage.json_text import parse_json

SEPARATORS = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}
DELIMITED = {".csv": ",", ".tsv": "\t", ".txt": ","}  # what is tried first
LINES = (".jsonl", ".ndjson")
MARKS = {  # the longer ones first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


@dataclass(frozen=True)
class ListFormat:
    """A list in UTF-8 whose rows are lines of JSON, or fields between separators."""

    path: str  # as a person named it, for messages
    names: tuple[str, ...]  # of the columns
    separator: str | None  # None: JSON
    quoted: bool  # a field may be in quotes, and then hold separators, quotes and line ends
    header_lines: int  # before the first row

    def row(self, lines: Iterable[bytes], number: int) -> tuple[dict, int]:
        """The row that begins with the first of `lines`, and how many lines it takes.

        `number` is that line's, for messages.

        Raises:
          ValueError: it is not as the format has it; the message names the line.
          EndsInQuotes: the lines end before its quotes do.
        """
        if self.separator is None:
            return self._json(next(iter(lines)), number), 1
        fields, count = self.fields(lines, number)
        if len(fields) > len(self.names):
            if any(field.strip() for field in fields[len(self.names) :]):
                raise ValueError(
                    f"{self.path} line {number} has {len(fields)} fields and the header "
                    f"{len(self.names)}: name all columns in the header, put fields that hold the "
                    f"separator {self.separator!r} in quotes, or set data.separator; the line is {_short(self.separator.join(fields))!r}"
                )
            fields = fields[: len(self.names)]
        return {name: field.strip() for name, field in zip(self.names, fields)}, count

    def fields(self, lines: Iterable[bytes], number: int) -> tuple[list[str], int]:
        """The fields of a row of a delimited list, and how many lines it takes."""
        texts = (self._text(line, number + offset) for offset, line in enumerate(lines))
        if not self.quoted:
            return next(texts).rstrip("\r\n").split(self.separator), 1
        reader = csv.reader(texts, **self._dialect)
        try:
            return next(reader), reader.line_num
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise EndsInQuotes(self._quote_message(number)) from error
            if "new-line character" in str(error):
                raise ValueError(
                    f"{self.path} line {number}: a carriage return stands inside of a field that is "
                    'not in quotes: remove it, or set data.quoting="none"'
                ) from error
            raise ValueError(f"{self._quote_message(number)} ({error})") from error

    def many(self, lines: Iterable[bytes]) -> list[list[str]]:
        """The fields of many lines that are a row each; ValueError where they are not."""
        texts = (line.decode() for line in lines)
        try:
            return list(csv.reader(texts, **self._dialect))
        except csv.Error as error:
            raise ValueError(str(error)) from error

    @property
    def _dialect(self) -> dict:
        csv.field_size_limit(1 << 27)  # the default of 128 kB is refused with a riddle
        spaces = self.separator != " "
        return {"delimiter": self.separator, "strict": True, "skipinitialspace": spaces}

    def _quote_message(self, number: int) -> str:
        return (
            f"{self.path} line {number}: a quote opens that is not closed where its field ends. "
            'Double the quotes inside of fields, or set data.quoting="none" where they mean nothing'
        )

    def _text(self, line: bytes, number: int) -> str:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} line {number} is not text in UTF-8 (byte {error.object[error.start]:#04x}"
                f" at its place {error.start + 1}): save it as UTF-8, or set data.encoding, such as "
                "latin-1"
            ) from error

    def _json(self, line: bytes, number: int) -> dict:
        text = self._text(line, number)
        try:
            row = parse_json(text)
        except ValueError as error:
            mend = "; a list in one piece is named .json" if line.lstrip()[:1] == b"[" else ""
            raise ValueError(f"{self.path} line {number} is not JSON: {error}{mend}") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{self.path} line {number} is not a JSON object: {_short(line.decode().strip())}"
            )
        return row

    def refuse_swallowed_rows(self, row: dict, number: int, count: int, image: str):
        """Refuse a row of several lines of which one looks like a row of its own.

        A quote that opens by mistake and meets another one some rows later hides those between.
        """
        place = self.names.index(image)
        for text in row.values():
            for line in text.split("\n")[1:]:
                fields = line.split(self.separator)
                path = fields[place].strip() if len(fields) == len(self.names) else ""
                if os.path.splitext(path)[1][1:].isalnum() and " " not in path:
                    raise ValueError(
                        f"{self._quote_message(number)}; it would hide {count - 1} lines, such as "
                        f"{_short(line)!r}"
                    )


class EndsInQuotes(ValueError):
    """A row whose quotes are still open after the last line that was given."""


def read_format(path: str, shown: str, cfg: DataConfig) -> ListFormat:
    """How the UTF-8 list in the file `path`, which a person calls `shown`, is written.

    Raises:
      ValueError: it is empty, or has no header.
    """
    json_lines = _suffix(path) in LINES
    with open(path, "rb") as file:
        start = file.read(3)
        file.seek(3 if start == codecs.BOM_UTF8 else 0)
        head = file.read(1 << 16)
        if (kind := what_it_is(head[:512])) is not None:
            raise ValueError(f"{shown} {kind}")
        if b"\0" in (name := head[:512].split(b"\n")[0][:64]):
            order = "be" if name[:1] == b"\0" else "le"
            raise ValueError(
                f"{shown} has bytes of zero in its header, as UTF-16 without a byte order mark has: "
                f"set data.encoding, such as utf-16-{order}"
            )
        if not json_lines and b"\r" in head and b"\n" not in head:
            raise ValueError(f"{shown} ends its lines with a carriage return alone; save it again")
        file.seek(3 if start == codecs.BOM_UTF8 else 0)
        if not start:
            raise ValueError(f"{shown} is empty; it must hold an image and a caption in each row")
        skipped = 0
        for first in file:
            if first.strip():
                break
            skipped += 1
        else:
            raise ValueError(f"{shown} is empty; it must hold an image and a caption in each row")
        if json_lines:
            return _json_format(itertools.chain([first], file), shown, skipped)
    separator = _separator(cfg.separator, first, path, cfg)
    format = ListFormat(shown, (), separator, cfg.quoting == "csv", skipped + 1)
    fields, _ = format.fields([first], skipped + 1)
    last = max((place for place, name in enumerate(fields, start=1) if name.strip()), default=1)
    # Excel ends lines in separators, and pandas gives an index no name.
    names = tuple(name.strip() or f"column {n}" for n, name in enumerate(fields[:last], start=1))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{shown} has several columns called {twice[0]!r}; rename all but one")
    if cfg.image_column not in names and any(is_image(n) or storage.is_url(n) for n in names):
        raise ValueError(
            f"{shown} has a row in the place of its header, {_short(separator.join(fields))!r}: write "
            f"the names of the columns above it, such as image{separator}caption"
        )
    return ListFormat(shown, names, separator, cfg.quoting == "csv", skipped + 1)


def _json_format(lines: Iterable[bytes], shown: str, skipped: int) -> ListFormat:
    """The format of lines of JSON, of which some rows may lack what others have."""
    unnamed = ListFormat(shown, (), None, False, skipped)
    numbered = enumerate(itertools.islice(lines, CHECKED), start=skipped + 1)
    rows = [unnamed.row([line], number)[0] for number, line in numbered if line.strip()]
    return ListFormat(shown, tuple(dict.fromkeys(itertools.chain(*rows))), None, False, skipped)


def _separator(given: str | None, header: bytes, path: str, cfg: DataConfig) -> str:
    """What `data.separator` says, or what gives the most columns with names that are known."""
    if given is not None:
        found = SEPARATORS.get(given, given.replace("\\t", "\t"))
        if len(found) != 1:
            raise ValueError(
                f"data.separator={given!r} is not one character, nor one of {', '.join(SEPARATORS)}"
            )
        return found
    text = header.decode("utf-8", "replace").rstrip("\r\n")
    first = DELIMITED[_suffix(path)]
    wanted = {cfg.image_column, cfg.caption_column, cfg.label_column, *IMAGE_NAMES, *CAPTION_NAMES}

    def score(separator: str) -> tuple[int, bool, bool]:
        fields = next(csv.reader([text], delimiter=separator, skipinitialspace=True))
        names = [field.strip() for field in fields]
        known = sum(
            n in wanted or n.lower() in wanted or bool(NUMBERED.fullmatch(n)) for n in names
        )
        return known, len(fields) > 1, separator == first

    return max(SEPARATORS.values(), key=score)


def encoded_otherwise(start: bytes, cfg: DataConfig) -> str | None:
    """The encoding of a list that is not in UTF-8, as far as its first bytes or a setting say."""
    return cfg.encoding or next(
        (name for mark, name in MARKS.items() if start.startswith(mark)), None
    )


def as_utf8(data: bytes, encoding: str, path: str) -> bytes:
    """A list in another encoding, as UTF-8."""
    try:
        return data.decode(encoding).removeprefix("\ufeff").encode()
    except (UnicodeDecodeError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as {encoding}: {error}") from error


def json_lines(rows: Iterable[dict]) -> bytes:
    """Rows as a list of JSON lines."""
    out = io.BytesIO()
    for row in rows:
        out.write(json.dumps(row).encode() + b"\n")
    return out.getvalue()


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Looks through a list once: where its rows start, and a hash of each row's image."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from clip_jax.data.sources.columns import CaptionColumns, NotText
from clip_jax.data.sources.list_format import EndsInQuotes, ListFormat
from clip_jax.data.sources.piece_hashes import (
    after_dots,
    hash_pieces,
    hash_texts,
    strip,
    with_second,
)
from clip_jax.storage.json_text import parse_json

BLOCK = 1 << 24  # bytes that are looked through at once
MOST_ROW = 1 << 20  # bytes of a row in quotes
NEWLINE, RETURN, SPACE, QUOTE = b'\n\r "'
ODD, PLAIN, QUOTED = range(3)  # kinds of lines
PARSED_AT_ONCE = 4096  # lines of JSON

Pair = tuple[bytes, bytes]  # image and label of a row


@dataclass(frozen=True)
class Wanted:
    """What an index is made by: the columns, and whether rows of one image are put together."""

    image: str
    captions: CaptionColumns
    label: str | None
    group: bool


@dataclass
class Found:
    """What was seen so far."""

    starts: list[np.ndarray] = field(default_factory=list)  # byte of each row
    hashes: list[np.ndarray] = field(default_factory=list)  # of its image, if it has a caption
    labels: set[str] = field(default_factory=set)
    rows: int = 0
    short: int = 0  # rows with fewer fields than the header
    first_short: int = 0  # line of the first of them


def scan(path: str, format: ListFormat, wanted: Wanted) -> Found:
    """Look through the whole list."""
    found = Found()
    with open(path, "rb") as file:
        for _ in range(format.header_lines):
            file.readline()
        base, line, block = file.tell(), format.header_lines + 1, b""
        if base == 0 and file.read(3) == b"\xef\xbb\xbf":
            base = 3
        file.seek(base)
        while more := file.read(BLOCK):
            block += more
            is_last = len(more) < BLOCK  # its last line may end without a line end
            whole = len(block) if is_last else block.rfind(b"\n") + 1
            if not whole:
                continue
            part = _Block(block[:whole], base, line, format, wanted)
            used, lines = part.into(found, is_last=is_last)
            block, base, line = block[used:], base + used, line + lines
        if block:
            _Block(block, base, line, format, wanted).into(found, is_last=True)
    return found


class _Block:
    """Whole lines of a list, the first being number `line` and at byte `base`.

    Nearly all of them are rows without quotes, which numpy finds, or with quotes that close in the
    line, which one parser takes all together. The others are parsed one by one, with care.
    """

    def __init__(self, data: bytes, base: int, line: int, format: ListFormat, wanted: Wanted):
        self._data, self._base, self._line = data, base, line
        self._format, self._wanted = format, wanted
        byte_N = self._byte_N = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(byte_N == NEWLINE)
        if len(data) and data[-1] != NEWLINE:
            ends = np.append(ends, len(data))
        self._end_L = ends
        self._start_L = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
        self._kind_L = np.full(len(ends), ODD, np.int8)
        self._quoted: dict[int, tuple[bytes, bytes]] = {}  # image and label by line
        if format.separator is not None and len(format.names) > 1 and _is_text(data):
            self._find_plain(byte_N)
        if format.separator is None:
            self._find_objects()

    def _find_objects(self):
        """Lines of JSON that are an object each, with an image and a caption that are texts."""
        for first in range(0, len(self._end_L), PARSED_AT_ONCE):
            last = min(first + PARSED_AT_ONCE, len(self._end_L))
            lines = self._data[self._start_L[first] : self._end_L[last - 1]].split(b"\n")
            try:
                rows = parse_json(b"[%b]" % b",".join(lines))
            except ValueError:
                continue
            if len(rows) == len(lines) == last - first:
                self._take_objects(first, rows)

    def _take_objects(self, first: int, rows: list):
        image, label, texts = self._wanted.image, self._wanted.label, self._wanted.captions.names
        name = texts[0] if texts else image  # the others are for whoever reads the row
        for line, row in enumerate(rows, start=first):
            try:
                path, caption = row[image], row[name]
            except (KeyError, TypeError):  # no object, or one that lacks something
                continue
            if type(path) is not str or type(caption) is not str or not caption.strip():
                continue
            if any(not isinstance(row.get(other), str | None) for other in texts[1:]):
                continue
            text = b"" if label is None else _bytes(label_text(row.get(label)))
            self._kind_L[line] = QUOTED
            self._quoted[line] = _bytes(plain_path(path)), text

    def _find_plain(self, byte_N: np.ndarray):
        """Lines that are rows as the header has them, with an image and a caption."""
        self._separator_P = np.flatnonzero(byte_N == ord(self._format.separator))
        self._separator_of_L = np.searchsorted(self._separator_P, self._start_L)
        fields_L = np.searchsorted(self._separator_P, self._end_L) - self._separator_of_L + 1
        plain_L = (fields_L == len(self._format.names)) & (self._end_L > self._start_L)
        if self._format.quoted:
            quote_P = np.flatnonzero(byte_N == QUOTE)
            quotes_L = np.bincount(np.searchsorted(self._end_L, quote_P), minlength=len(plain_L))
            plain_L &= quotes_L == 0
            self._find_quoted(np.flatnonzero((quotes_L > 0) & (quotes_L % 2 == 0)))
            # Inside of a line a carriage return is for the parser to refuse.
            inner_P = np.flatnonzero(byte_N[:-1] == RETURN)
            inner_P = inner_P[byte_N[inner_P + 1] != NEWLINE]
            plain_L[np.searchsorted(self._end_L, inner_P)] = False
        for name in self._wanted.captions.names[:1]:
            start_R, end_R = self._columns(name, np.flatnonzero(plain_L))
            # Such a caption may be white space alone, which is for the parser to see.
            blank_R = end_R - start_R < 4
            blank_R |= (byte_N[start_R] <= SPACE) & (byte_N[end_R - 1] <= SPACE)
            plain_L[np.flatnonzero(plain_L)[blank_R]] = False
        self._kind_L[plain_L] = PLAIN

    def _find_quoted(self, line_R: np.ndarray):
        """Of lines whose quotes are even in number, those that are a row each; all of them or none."""
        spans = zip(self._start_L[line_R].tolist(), self._end_L[line_R].tolist())
        lines = [self._data[start : end + 1] for start, end in spans]
        try:
            rows = self._format.many(lines)
        except ValueError:
            return
        names, wanted = self._format.names, self._wanted
        if len(rows) != len(lines) or any(len(row) != len(names) for row in rows):
            return
        image = names.index(wanted.image)
        label = None if wanted.label is None else names.index(wanted.label)
        caption = names.index(wanted.captions.names[0]) if wanted.captions.names else image
        for line, row in zip(line_R.tolist(), rows):
            if row[caption].strip():
                self._kind_L[line] = QUOTED
                text = b"" if label is None else row[label].strip().encode()
                self._quoted[line] = plain_path(row[image]).encode(), text

    def _columns(self, name: str, line_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First byte of a column of plain lines, and the one after it."""
        number = self._format.names.index(name)
        at_R = self._separator_of_L[line_R] + number
        first = number == 0
        start_R = self._start_L[line_R] if first else self._separator_P[at_R - 1] + 1
        is_last = number + 1 == len(self._format.names)
        return start_R, self._end_L[line_R] if is_last else self._separator_P[at_R]

    def _hash_plain(self, name: str, line_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of a column of plain lines, and the lengths of what stands in it."""
        start_R, end_R = strip(self._byte_N, *self._columns(name, line_R))
        if name == self._wanted.image:
            start_R = after_dots(self._byte_N, start_R, end_R)
        return hash_pieces(self._data, start_R, end_R), end_R - start_R

    def _labels_of_plain(self, line_R: np.ndarray) -> set[bytes]:
        if not len(line_R):  # as in lists of JSON
            return set()
        start_R, end_R = strip(self._byte_N, *self._columns(self._wanted.label, line_R))
        spans = zip(start_R.tolist(), end_R.tolist())
        return {self._data[start:end] for start, end in spans}

    def into(self, found: Found, *, is_last: bool) -> tuple[int, int]:
        """Add the rows; how many bytes and lines of them were whole."""
        odd, used, lines = self._odd_lines(found, is_last=is_last)
        self._kind_L[lines:] = ODD
        plain_R = np.flatnonzero(self._kind_L == PLAIN)
        quoted = [n for n in self._quoted if self._kind_L[n] == QUOTED]
        others = np.array([*quoted, *(number for number, _ in odd)], np.int64)
        line_R = np.concatenate([plain_R, others])
        order_R = np.argsort(line_R, kind="stable")
        start_R = (self._start_L[line_R] + self._base).astype(np.uint64)
        found.starts.append(start_R[order_R])
        found.rows += len(line_R)
        pairs = [*(self._quoted[n] for n in quoted), *(pair for _, pair in odd)]
        if self._wanted.label is not None:
            texts = self._labels_of_plain(plain_R) | {self._quoted[n][1] for n in quoted}
            found.labels |= {text.decode() for text in texts}
        if self._wanted.group:
            hash_R = np.concatenate([self._hashes_of_plain(plain_R), _hashes_of_pairs(pairs)])
            found.hashes.append(hash_R[order_R])
        return used, lines

    def _hashes_of_plain(self, line_R: np.ndarray) -> np.ndarray:
        if not len(line_R):
            return np.empty(0, np.uint64)
        hash_R, _ = self._hash_plain(self._wanted.image, line_R)
        if self._wanted.label is None:
            return hash_R
        label_R, length_R = self._hash_plain(self._wanted.label, line_R)
        return np.where(length_R > 0, with_second(hash_R, label_R), hash_R)

    def _odd_lines(
        self, found: Found, *, is_last: bool
    ) -> tuple[list[tuple[int, Pair | None]], int, int]:
        """Line, and image and label, of rows that need the parser, and the bytes and lines that were whole."""
        rows, after = [], 0  # the line after the row that was parsed last
        for number in np.flatnonzero(self._kind_L == ODD).tolist():
            if number < after:
                continue  # inside of the row before
            lines = self._lines(number)
            if not next(lines).strip():
                continue
            try:
                row, count = self._format.row(self._lines(number), self._line + number)
            except EndsInQuotes:
                start = int(self._start_L[number])
                if is_last or len(self._data) - start > MOST_ROW:
                    raise
                return rows, start, number
            after = number + count
            self._kind_L[number:after] = ODD
            rows.append((number, self._look_at(row, number, count, found)))
        return rows, len(self._data), len(self._end_L)

    def _lines(self, number: int) -> Iterator[bytes]:
        for line in range(number, len(self._end_L)):
            yield self._data[self._start_L[line] : self._end_L[line] + 1]

    def _look_at(self, row: dict, number: int, count: int, found: Found) -> "Pair | None":
        """Check a parsed row; its image and label, or None where it is a sample by itself."""
        wanted, line = self._wanted, self._line + number
        if count > 1:
            self._format.refuse_swallowed_rows(row, line, count, wanted.image)
        if self._format.separator is not None and len(row) < len(self._format.names):
            found.short += 1
            found.first_short = found.first_short or line
            return None
        label = ""
        if wanted.label is not None:
            label = label_text(row.get(wanted.label))
            found.labels.add(label)
        texts = captions_of(row, wanted.captions, where=f"{self._format.path} line {line}")
        image = row.get(wanted.image)
        captioned = any(texts) or not wanted.captions.names
        if not captioned or not isinstance(image, str):
            return None
        return _bytes(plain_path(image)), _bytes(label)


def _is_text(data: bytes) -> bool:
    """Whether it is UTF-8; of what is not, the parser says the line."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def plain_path(text: str) -> str:
    """A path as others may write it too: without spaces around, and without ./ before it."""
    text = text.strip()
    while text.startswith("./") and text[2:3] != "/":  # .//a is no path from the root on
        text = text[2:]
    return text


def label_text(value) -> str:
    """What stands in the label column of a row."""
    return "" if value is None else str(value).strip()


def captions_of(row: dict, captions: CaptionColumns, *, where: str) -> list[list[str]]:
    """The captions of a row by column. A number or a truth value is a missing caption.

    Raises:
      ValueError: it is an object, so that the column is the wrong one.
    """
    try:
        return captions.texts(row)
    except NotText as error:
        if error.fields:
            raise ValueError(error.message(",".join(captions.names), where=where)) from error
        return [[] for _ in captions.names]


def _hashes_of_pairs(pairs: "list[Pair | None]") -> np.ndarray:
    """What rows of one sample have in common: a hash of image and label; 0 for none."""
    hash_R = hash_texts([pair[0] if pair else b"" for pair in pairs])
    labels = [pair[1] if pair else b"" for pair in pairs]
    if any(labels):
        has_R = np.array([bool(label) for label in labels])
        hash_R = np.where(has_R, with_second(hash_R, hash_texts(labels)), hash_R)
    return np.where(np.array([pair is not None for pair in pairs], bool), hash_R, np.uint64(0))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

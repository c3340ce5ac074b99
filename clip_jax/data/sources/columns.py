"""Finds the image and the caption columns of a table, whatever they are called."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

IMAGE_NAMES = (
    "image", "filepath", "file_path", "image_path", "file_name", "filename", "path", "jpg", "png",
    "webp", "img", "file", "image_bytes", "bytes",
)  # fmt: skip
CAPTION_NAMES = (
    "caption", "captions", "text", "title", "txt", "description", "sentence", "sentences",
    "raw_text", "alt_text", "alt", "top_caption",
)  # fmt: skip
LABEL_NAMES = ("label", "cls", "class", "class_id")
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


@dataclass(frozen=True)
class CaptionColumns:
    """The columns that captions are taken from, with the probability of each.

    `data.caption_column` names one, or several as in "caption=0.3,synthetic=0.7". A column may
    hold one text or a list of them, which then share its probability.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] | None  # None: all captions are alike

    def texts(self, row: Mapping) -> list[list[str]]:
        """The captions of a row by column, without empty ones."""
        return [_texts(row.get(name)) for name in self.names]

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
    if optional and given is None and not lowered.intersection(CAPTION_NAMES):
        return CaptionColumns((), None)
    if given is None or given in columns:
        name = find_column("caption", given, CAPTION_NAMES, columns, where=where)
        return CaptionColumns((name,), None)
    found = parse_caption_columns(given)
    for name in found.names:
        find_column("caption", name, CAPTION_NAMES, columns, where=where)
    return found


def _texts(value) -> list[str]:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    values = value if isinstance(value, list | tuple) else [value]
    texts = [" ".join(str(text).split()) for text in values if text is not None]
    return [text for text in texts if text]


def refuse_numbers(captions: Iterable[str], column: str, *, where: str):
    """Raise a ValueError if the first captions are all numbers: the wrong column was taken."""
    seen = 0
    for caption in captions:
        if not caption.strip():
            continue
        if not _is_number(caption):
            return
        seen += 1
        if seen == CHECKED:
            break
    if seen:
        raise ValueError(
            f"{where}: the caption column {column!r} holds numbers, not text; name the right one "
            "with data.caption_column"
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

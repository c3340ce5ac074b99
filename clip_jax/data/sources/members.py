"""Captions and label of a sample out of files of one name: those in a tar, or side by side in a folder."""

from dataclasses import dataclass

from clip_jax.data.images.formats import EXTENSIONS
from clip_jax.data.sources import columns, labels
from clip_jax.storage.json_text import parse_json

TEXT = "txt"  # the member that is the caption where no column is named
TEXTS = (TEXT, "caption", "text")  # members that are one by their names
LABEL = "cls"  # the member with the number of the class
MANY_LINES = (
    "texts of several lines are one caption each; data.caption_lines=True makes each line a caption"
)
MANY_IMAGES = (
    "there are samples with several images, of which one is read; data.image_column names its "
    "extension"
)
MANY_TEXTS = (
    "there are samples with several texts, of which one is read; data.caption_column names one or more "
    "of them by their extensions"
)
ODD_LABEL = "there are samples whose {} is no number of a class; they have no label"


@dataclass(frozen=True)
class Members:
    """How the members of a sample are read. They are given by extension."""

    columns: columns.CaptionColumns | None  # None: TEXTS, or else the fields with known names
    label: str
    lines: bool  # each line of a text is a caption

    def read(self, parts: dict[str, bytes]) -> tuple[tuple[str, ...], tuple | None, int | None]:
        """Captions, their probabilities, and the label.

        Raises:
          UnicodeDecodeError: a text is in an encoding that cannot be known.
          columns.NotText: a caption is an object, a number or a truth value.
        """
        texts: dict[str, bytes] = {}
        for extension, data in parts.items():  # whole extensions win over last parts
            texts[extension] = data
            texts.setdefault(extension.rpartition(".")[2], data)
        row = _json(texts.get("json"))
        label = labels.parse_label(texts.get(self.label, row.get(self.label)))
        return *self._captions(texts, row), label

    def notes(self, parts: dict[str, bytes]) -> set[str]:
        """What a person should know of how this sample is read."""
        texts = (data for name, data in parts.items() if name.rpartition(".")[2] in TEXTS)
        found = {MANY_LINES} if any(b"\n" in data.strip() for data in texts) else set()
        endings = [name.rpartition(".")[2] for name in parts]
        if sum(ending in EXTENSIONS for ending in endings) > 1:
            found.add(MANY_IMAGES)
        if self.columns is None and sum(ending in TEXTS for ending in endings) > 1:
            found.add(MANY_TEXTS)
        label = parts.get(self.label, _json(parts.get("json")).get(self.label))
        if label is not None and labels.parse_label(label) is None:
            found.add(ODD_LABEL.format(self.label))
        return found - ({MANY_LINES} if self.lines else set())

    def _captions(self, texts: dict[str, bytes], row: dict) -> tuple[tuple[str, ...], tuple | None]:
        if self.columns is not None:
            wanted = {name: texts.get(name.lower()) for name in self.columns.names}
            found = {name: self._text(data) for name, data in wanted.items() if data is not None}
            return self.columns.choose(self.columns.texts({**found, **row}))
        for name in TEXTS:
            if captions := columns.texts_of(self._text(texts.get(name))):
                return tuple(captions), None
        name = next((name for name in columns.CAPTION_NAMES if row.get(name)), None)
        return tuple(columns.texts_of(row.get(name))) if name else (), None

    def _text(self, data: bytes | None) -> str | list[str]:
        text = columns.decode(data or b"")
        return text.splitlines() if self.lines else text


def make_members(caption_column: str | None, label_column: str | None, *, lines: bool) -> Members:
    """What the settings say."""
    named = caption_column is not None and caption_column != TEXT
    return Members(
        columns.parse_caption_columns(caption_column) if named else None,
        (label_column or LABEL).lower(),
        lines,
    )


def _json(data: bytes | None) -> dict:
    if data is None:
        return {}
    try:
        row = parse_json(data)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}

"""Choices and associations in the files that their authors publish."""

import csv
import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from clip_jax.data.samples import BadSample, Question, Sample
from clip_jax.evaluation.bench.hub import Table, find_table
from clip_jax.evaluation.bench.tasks import Task
from clip_jax.storage.json_text import parse_json

FORMATS = ["JPEG", "PNG", "WEBP"]


class Picture(NamedTuple):
    """An image of a question: how its file is read, and a name for messages."""

    read: Callable[[], bytes]
    key: str


class QuestionSet:
    """Images by number, and questions about them."""

    classes = templates = None
    lost, notes = 0, ()

    def __init__(
        self,
        name: str,
        fingerprint: str,
        pictures: Sequence[Picture],
        questions: Sequence[Question],
    ):
        self.name, self.fingerprint = name, fingerprint
        self._pictures, self.questions = tuple(pictures), tuple(questions)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        read, key = self._pictures[index]
        try:
            return Sample(read(), ("",), key, self.name)
        except OSError as error:
            raise BadSample("missing-file", key=key, shard=self.name) from error


def open_questions(task: Task, roots: Sequence[Path]) -> QuestionSet | None:
    """The questions of a task; None where there are none under the roots.

    Raises:
      ValueError: a file is of another form than its authors publish it in; the message names it.
    """
    found = _find(task, roots)
    if found is None:
        return None
    path, read = found
    try:
        return read()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            f"{path} is of another form than its authors publish it in: {type(error).__name__}: {error}"
        ) from error


def _find(task: Task, roots: Sequence[Path]) -> tuple[Path, Callable[[], QuestionSet]] | None:
    """The first file of a task, and what reads it."""
    family, _, part = task.name.partition("/")
    if family in ("misc", "winoground"):
        table = find_table(task.hub, (task.name,), roots)
        if table is not None:
            read = winogavil if family == "misc" else winoground
            return table.files[0], functools.partial(read, table)
    for root in roots:
        places = {
            "winoground": (root / family / "examples.jsonl", winoground_files),
            "sugar_crepe": (root / family / f"{part}.json", sugar_crepe),
            "aro": (root / family / f"{part}.json", aro),
            "mmvp_vlm": (root / family / "Questions.csv", mmvp_vlm),
        }
        path, read = places.get(family, (None, None))
        if family == "mmvp_vlm" and not path.is_file():
            path = root / "MMVP_VLM" / "Questions.csv"
        if path is not None and path.is_file():
            return path, functools.partial(read, path)
    return None


# ---------------------------------------------------------------------------------- tables


def winogavil(table: Table) -> QuestionSet:
    """WinoGAViL: the candidates of a cue. Candidates of one name are one image."""
    columns = ("candidates", "candidate_images", "cue", "associations")
    table.need(*columns)
    pictures: dict[str, Picture] = {}
    number: dict[str, int] = {}
    questions = []
    for row in range(len(table)):
        candidates, right = table.cell("candidates", row), table.cell("associations", row)
        if not isinstance(candidates, list) or not isinstance(right, list):
            raise ValueError(
                f"{table.files[0]}: candidates and associations must be lists of names"
            )
        for place, name in enumerate(candidates):
            if name not in pictures:
                number[name] = len(pictures)
                pictures[name] = Picture(_cell(table, "candidate_images", row, place), name)
        pairs = tuple((place, 0) for place, name in enumerate(candidates) if name in right)
        if not pairs:
            raise ValueError(f"{table.files[0]} row {row}: no association is among its candidates")
        images = tuple(number[name] for name in candidates)
        questions.append(Question(images, (_cue(table.cell("cue", row)),), pairs))
    return QuestionSet(str(table.files[0]), table.fingerprint, list(pictures.values()), questions)


def _cue(cue: str) -> str:
    """The prompt of a cue, as its authors write it: "A werewolf", "An apple"."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in tuple('aeiou') else 'A'} {cue}"


def _cell(table: Table, column: str, row: int, place: int | None = None) -> Callable[[], bytes]:
    def read() -> bytes:
        value = table.cell(column, row)
        return table.image(value if place is None else value[place], f"row {row}")

    return read


def winoground(table: Table) -> QuestionSet:
    """Winoground: two images and two captions of the same words."""
    table.need("image_0", "image_1", "caption_0", "caption_1")
    pictures, questions = [], []
    for row in range(len(table)):
        texts = (table.cell("caption_0", row), table.cell("caption_1", row))
        questions.append(_pair(len(pictures), texts, None))
        for side in (0, 1):
            pictures.append(Picture(_cell(table, f"image_{side}", row), f"row {row} image {side}"))
    return QuestionSet(str(table.files[0]), table.fingerprint, pictures, questions)


# ----------------------------------------------------------------------------------- files


def winoground_files(path: Path) -> QuestionSet:
    """examples.jsonl, and the images that it names under images/."""
    folder, pictures, questions = path.parent, [], []
    for line in filter(str.strip, path.read_text("utf-8").split("\n")):
        row = _fields(parse_json(line), path, "image_0", "image_1", "caption_0", "caption_1")
        questions.append(_pair(len(pictures), (row["caption_0"], row["caption_1"]), None))
        pictures += [_file(_named(folder / "images", row[f"image_{side}"])) for side in (0, 1)]
    return QuestionSet(str(path), _digest(path), pictures, questions)


def sugar_crepe(path: Path) -> QuestionSet:
    """SugarCrepe: a caption and one that is wrong, of an image of COCO's val2017."""
    root = path.parent.parent
    places = [path.parent / "val2017", root / "coco" / "val2017", root / "val2017", path.parent]
    folder = next((place for place in places if place.is_dir()), path.parent)
    pictures, questions = [], []
    for row in _json(path, dict).values():
        row = _fields(row, path, "filename", "caption", "negative_caption")
        texts = (row["caption"], row["negative_caption"])
        questions.append(Question((len(pictures),), texts, ((0, 0),)))
        pictures.append(_file(folder / row["filename"]))
    return QuestionSet(str(path), _digest(path), pictures, questions)


def aro(path: Path) -> QuestionSet:
    """ARO: a part of an image of Visual Genome, with a caption whose words are swapped."""
    pictures, questions = [], []
    for row in _json(path, list):
        names = (
            "image_path",
            "true_caption",
            "false_caption",
            "bbox_x",
            "bbox_y",
            "bbox_w",
            "bbox_h",
        )
        row = _fields(row, path, *names)
        group = row.get("relation_name") or "_".join(row.get("attributes", ())) or None
        texts = (row["true_caption"], row["false_caption"])
        questions.append(Question((len(pictures),), texts, ((0, 0),), group=group))
        box = tuple(int(row[f"bbox_{side}"]) for side in "xywh")
        pictures.append(_file(path.parent / "images" / row["image_path"], box))
    return QuestionSet(str(path), _digest(path), pictures, questions)


def mmvp_vlm(path: Path) -> QuestionSet:
    """MMVP-VLM: pairs of images that CLIP takes for alike, each with its statement."""
    folder, pictures = path.parent, []
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [
            _fields(row, path, "Question ID", "Type", "Statement") for row in csv.DictReader(file)
        ]
    if len(rows) % 2:
        raise ValueError(f"{path} has {len(rows)} questions, and they must be pairs")
    questions = []
    for first, second in zip(rows[::2], rows[1::2]):
        if first["Type"] != second["Type"]:
            raise ValueError(f"{path}: questions {first['Question ID']} and the next are no pair")
        texts = (first["Statement"], second["Statement"])
        questions.append(_pair(len(pictures), texts, first["Type"].strip().replace(" ", "_")))
        for row in (first, second):
            place = folder / "MLLM_VLM Images" / row["Type"].strip()
            pictures.append(_file(_named(place, row["Question ID"].strip())))
    return QuestionSet(str(path), _digest(path), pictures, questions)


def _pair(first: int, texts: tuple[str, str], group: str | None) -> Question:
    return Question((first, first + 1), texts, ((0, 0), (1, 1)), group=group)


def _named(folder: Path, name: str) -> Path:
    """The image of a name that is written without its ending."""
    if Path(name).suffix:
        return folder / name
    places = [folder / f"{name}.{ending}" for ending in ("jpg", "png", "jpeg", "webp")]
    return next((place for place in places if place.is_file()), places[0])


def _file(path: Path, box: tuple[int, ...] | None = None) -> Picture:
    """The image in a file, or its part from (x, y) on of (w, h) pixels, as PNG."""

    def part() -> bytes:
        if box is None:
            return path.read_bytes()
        with Image.open(path, formats=FORMATS) as image:
            buffer = io.BytesIO()
            x, y, w, h = box
            image.convert("RGB").crop((x, y, x + w, y + h)).save(buffer, "PNG")
        return buffer.getvalue()

    return Picture(part, str(path))


def _json(path: Path, kind: type) -> Any:
    try:
        found = parse_json(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, kind) or not found:
        raise ValueError(f"{path} must be {'an object' if kind is dict else 'a list'} of questions")
    return found


def _fields(row: Any, path: Path, *names: str) -> dict[str, Any]:
    missing = [name for name in names if not isinstance(row, dict) or row.get(name) is None]
    if missing:
        raise ValueError(f"{path}: a question has no {', '.join(missing)}")
    return row


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]

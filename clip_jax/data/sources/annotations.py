"""Files of captions with a layout of their own, as rows: COCO's and Karpathy's JSON, Flickr30k's .token."""

from collections import Counter
from collections.abc import Iterator

from clip_jax.data.sources.tar_members import what_it_is
from clip_jax.storage.json_text import parse_json

SPLITS = {"train": ("train", "restval"), "test": ("test", "val")}


def rows_of_json(data: bytes, path: str, split: str) -> tuple[list[dict], str | None]:
    """Rows of image and captions, and a note on skipped images, if any.

    Raises:
      ValueError: it is none of the layouts that are known.
    """
    try:
        content = parse_json(data)
    except ValueError as error:
        if (lines := _lines_of_json(data)) is not None:
            return lines, None
        if (kind := what_it_is(data[:512])) is not None:
            raise ValueError(f"{path} {kind}") from error
        mend = isinstance(error, UnicodeDecodeError) and "; set data.encoding, such as latin-1"
        raise ValueError(f"{path} is not JSON: {error}{mend or ''}") from error
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return content, None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        raise ValueError(
            f"{path} is none of the JSON layouts that are read: COCO's captions (images, annotations), "
            "Karpathy's (images with sentences), or a list of objects"
        )
    layout = "Karpathy's" if "sentences" in images[0] else "COCO's"
    try:
        if layout == "COCO's":
            return _coco(images, content.get("annotations") or [], path)
        return _karpathy(images, split)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} looks like {layout} layout, but an entry of it is not as that has it: "
            f"{type(error).__name__}: {error}"
        ) from error


def _lines_of_json(data: bytes) -> list[dict] | None:
    """Lines that are an object each, whatever the file's name ends in; None: they are not."""
    try:
        rows = [parse_json(line) for line in data.splitlines() if line.strip()]
    except ValueError:
        return None
    return rows if len(rows) > 1 and all(isinstance(row, dict) for row in rows) else None


def _coco(images: list[dict], annotations: list[dict], path: str) -> tuple[list[dict], str | None]:
    captions: dict = {}
    for annotation in annotations:
        if "caption" in annotation:
            captions.setdefault(annotation.get("image_id"), []).append(annotation["caption"])
    if not captions:
        found = ", ".join(sorted(annotations[0])) if annotations else "nothing"
        raise ValueError(
            f"{path} holds no captions (its annotations hold {found}); COCO's captions are in "
            "captions_train2017.json and the like"
        )
    rows = [
        {"image": image["file_name"], "caption": captions[image["id"]]}
        for image in images
        if image.get("id") in captions
    ]
    twice = [number for number, count in Counter(i.get("id") for i in images).items() if count > 1]
    if twice:
        raise ValueError(
            f"{path} has several images with the id {twice[0]!r}: captions fit neither"
        )
    if not rows:
        raise ValueError(
            f"{path}: none of its captions has an image; the first is of image_id "
            f"{next(iter(captions))!r}, and the first image has the id {images[0].get('id')!r}"
        )
    unknown = len(captions.keys() - {image.get("id") for image in images})
    without = len(images) - len(rows)
    said = [f"{without} images have no caption"] * bool(without)
    said += [f"the captions of {unknown} images have no image"] * bool(unknown)
    return rows, "; ".join(said) or None


def _karpathy(images: list[dict], split: str) -> tuple[list[dict], str | None]:
    """Images with the split that each belongs to."""
    counts = Counter(image.get("split") for image in images)
    wanted = test_split(counts) if split == "test" else SPLITS["train"]
    if None in counts or not wanted:
        wanted = tuple(counts)
    rows = [
        {
            "image": "/".join(filter(None, (image.get("filepath"), image.get("filename")))),
            "caption": [sentence.get("raw") for sentence in image["sentences"]],
        }
        for image in images
        if image.get("split") in wanted
    ]
    others = ", ".join(f"{count} {name}" for name, count in counts.items() if name not in wanted)
    return rows, f"images of other splits are skipped: {others}" if others else None


def test_split(splits: Counter) -> tuple[str, ...]:
    """The split that is evaluated on, of those that there are."""
    return next(((name,) for name in SPLITS["test"] if splits.get(name)), ())


def splits_of_json(data: bytes) -> Counter:
    """How many images of each split a file of Karpathy's layout has; empty for others."""
    try:
        images = parse_json(data)["images"]
        return Counter(image["split"] for image in images)
    except (ValueError, TypeError, KeyError):
        return Counter()


def rows_of_token(data: bytes, path: str) -> Iterator[dict]:
    """The rows of Flickr30k's results_20130124.token: NAME#NUMBER<TAB>CAPTION in each line."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            name, tab, caption = line.decode().partition("\t")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} line {number} is not text in UTF-8: {error}") from error
        image, mark, _ = name.rpartition("#")
        if not tab or not mark:
            raise ValueError(f"{path} line {number} is not NAME#NUMBER<TAB>CAPTION: {line[:60]!r}")
        yield {"image": image, "caption": caption}

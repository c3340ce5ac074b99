"""Images with their captions in files beside them, as img2dataset's "files" output and many others have it."""

import os
from collections import Counter

import xxhash

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.images.formats import is_image
from clip_jax.data.samples import BadSample, Sample, Split
from clip_jax.data.sources import columns, labels, splits
from clip_jax.data.sources.folder_listing import left_out
from clip_jax.data.sources.image_files import read_image
from clip_jax.data.sources.list_index import cache_folder
from clip_jax.data.sources.members import LABEL, TEXTS, make_members
from clip_jax.data.sources.packed_strings import PackedStrings

PROBED = 200
LISTS = ("metadata.csv", "metadata.jsonl")  # of image folders as Hugging Face has them


def beside(files: list[str], cfg: DataConfig) -> dict[str, list[str]]:
    """The endings of files with text or a label beside each image, by what stands before the ending.

    That is the image's path with or without its own ending: a.txt or a.jpg.txt beside a.jpg.
    """
    wanted = {*TEXTS, "json", cfg.label_column or LABEL}
    if cfg.caption_column is not None:
        wanted.update(columns.parse_caption_columns(cfg.caption_column).names)
    images = {stem for path in files if is_image(path) for stem in _stems(path)}
    found: dict[str, list[str]] = {}
    for path in files:
        stem, ending = os.path.splitext(path)
        if ending[1:].lower() in wanted and stem in images:
            found.setdefault(stem, []).append(ending[1:])
    return found


def _stems(path: str) -> tuple[str, str]:
    """What the names of files beside an image begin with."""
    return os.path.splitext(path)[0], path


class CaptionFilesSource:
    """The images below `root` in the order of their paths, each with what lies beside it."""

    templates = None

    def __init__(
        self,
        root: str,
        files: list[str],
        found: dict[str, list[str]],
        cfg: DataConfig,
        split: Split,
    ):
        self.name, self._root = f"folder:{root}", root
        self._members = make_members(
            cfg.caption_column, cfg.label_column, lines=bool(cfg.caption_lines)
        )
        self._training, self._files = split == "train", PackedStrings()
        digest = xxhash.xxh3_64()
        without = 0
        for path in filter(is_image, files):
            short, whole = _stems(path)
            own = path[len(short) :]
            endings = [*found.get(short, ()), *(f"{own[1:]}.{end}" for end in found.get(whole, ()))]
            without += not endings
            self._files.append("\0".join([path, *endings]))
            digest.update(f"{path} {endings}\n".encode("utf-8", "surrogateescape"))
        self._files.share(cache_folder(cfg.data_dir))
        self.fingerprint = digest.hexdigest()
        read = {f"{stem}.{ending}" for stem, endings in found.items() for ending in endings}
        others = left_out([path for path in files if path not in read], root)
        kinds = Counter(ending for endings in found.values() for ending in endings)
        said = ", ".join(f"{count:_} .{kind}" for kind, count in kinds.most_common())
        self.notes = (f"captions are in the files beside the images ({said})",)
        self.notes += (f"{without:_} images have no such file",) * bool(without)
        self.notes += (others,) * bool(others)
        self._refuse_splits(files)
        self.classes = None
        self._check(cfg)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(index, training=self._training)

    def _read(self, index: int, *, training: bool) -> Sample:
        path, *endings = self._files[index].split("\0")
        shard = os.path.dirname(path) or os.path.basename(self._root)
        stem = os.path.splitext(path)[0]
        parts = {}
        for ending in endings:
            file = f"{self._root}/{stem}.{ending}"
            parts[ending.lower().rpartition(".")[2]] = read_image(
                file, key=f"{path} .{ending}", shard=shard
            )
        try:
            captions, probs, label = self._members.read(parts)
        except UnicodeDecodeError as error:
            raise BadSample("caption-not-utf8", key=path, shard=shard) from error
        except columns.NotText as error:
            raise BadSample("caption-not-text", key=path, shard=shard) from error
        captions = captions or labels.stand_in(label, self.classes, training=training)
        if not captions:
            raise BadSample("missing-caption", key=path, shard=shard)
        file = f"{self._root}/{path}"
        return Sample(
            image=read_image(file, key=path, shard=shard),
            captions=captions,
            key=path,
            shard=shard,
            label=label,
            caption_probs=probs,
            path=file,
        )

    def _check(self, cfg: DataConfig):
        """Of some samples at even distances, one must have a caption that is no number."""
        samples, bad = [], None
        for index in range(0, len(self), max(1, len(self) // PROBED)):
            try:
                samples.append(self._read(index, training=False))
            except BadSample as error:
                bad = error
        named = cfg.caption_column is not None
        if not any(text for sample in samples for text in sample.captions) and (
            named or not samples
        ):
            raise ValueError(
                f"{self.name}: no caption was found beside the images; the last was {bad}"
            )
        texts = [text for sample in samples for text in sample.captions if text]
        columns.refuse_numbers(texts, cfg.caption_column or "caption", where=self._root)
        if any(sample.label is not None for sample in samples):
            self.classes = labels.class_names(self._root)
            labels.check_names(self, training=self._training, captioned=bool(texts))

    def _refuse_splits(self, files: list[str]):
        found = {path.partition("/")[0] for path in files if "/" in path}
        if sum(map(splits.is_split, found)) > 1:
            splits.refuse_folders(self._root, found, ())


def open_list_inside(root: str) -> str | None:
    """The list of an image folder as Hugging Face has it: metadata.csv or metadata.jsonl.

    Raises:
      ValueError: there are both, which may say different things.
    """
    found = [f"{root}/{name}" for name in LISTS if storage.is_file(f"{root}/{name}")]
    if len(found) > 1:
        raise ValueError(
            f"{root} has {' and '.join(LISTS)}: read one of them, as pairs:{found[0]}, or remove it"
        )
    return found[0] if found else None

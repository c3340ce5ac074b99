"""Predicts the class of every picture of a source by texts, and sorts pictures by class as links."""

import csv
import dataclasses
import os
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jax.sharding import Mesh

from clip_jax import sharding, storage
from clip_jax.collection.dataset import Row
from clip_jax.collection.stream import embedded_batches
from clip_jax.config import DataConfig
from clip_jax.data.bad_samples import BadSamples, refuse_lost
from clip_jax.data.samples import Source
from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.prompts import Templates, class_embeddings
from clip_jax.registry import Count, Settings, Share
from clip_jax.storage.names import file_name
from clip_jax.weights.load import Loaded

UNSURE = "_unsure"  # the folder of pictures whose best class has too low a probability


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(Settings):
    """How classes are predicted."""

    top: Count = 5  # classes of each picture that are written
    batch_size: Count = 256  # pictures, over all devices
    min_probability: Share = 0.0  # of a class, below which links of a picture go to _unsure


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The classes of a picture, the best first. Probabilities as of the model's loss, see `score`."""

    row: Row
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def classify(
    loaded: Loaded,
    source: Source,
    classes: Sequence[str],
    templates: Templates,
    *,
    cfg: ClassifyConfig,
    data: DataConfig,
    mesh: Mesh,
    bad_samples: BadSamples | None = None,
) -> Iterator[Prediction]:
    """The classes of each picture that can be read, in the order of the source.

    Args:
      loaded: the model with its tokenizer.
      source: the pictures.
      classes: their names, at least one, each once.
      templates: prompts with {} or {c} where the name goes, or those of each class.
      cfg: how many classes of each, in which batches.
      data: how pictures are read, how many may be bad.
      mesh: all of its devices take part.
      bad_samples: counts bad samples.

    Raises:
      ValueError: a class is named twice, the model has no tokenizer, too many samples are bad.
    """
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"classes are named twice: {', '.join(twice[:5])}")
    if loaded.tokenizer is None:
        raise ValueError("no tokenizer lies with the model: put its file there")
    sharding.check_batch("batch_size", cfg.batch_size, mesh)
    refuse_lost(source, data.max_bad_share)
    variables = jax.device_put(loaded.variables, sharding.replicated(mesh))
    loaded = loaded._replace(variables=variables)
    encoder = Encoder(loaded.model, variables, mesh, batch_size=cfg.batch_size)
    z_class_SE = class_embeddings(encoder, loaded.tokenizer, classes, templates)
    batches = embedded_batches(
        loaded,
        source,
        data,
        mesh,
        starts=range(0, len(source), cfg.batch_size),
        batch_size=cfg.batch_size,
        kinds=("image",),
        bad_samples=bad_samples or BadSamples(),
        whole=len(source),
    )
    for _, about_B, z in batches:
        probability_BS = score(loaded, z["image"], z_class_SE)
        best_BK = np.argsort(-probability_BS, axis=1, kind="stable")[:, : cfg.top]
        for row, best_K, probability_S in zip(about_B, best_BK.tolist(), probability_BS):
            if isinstance(row, Row):
                names = tuple(classes[place] for place in best_K)
                yield Prediction(row, names, tuple(probability_S[best_K].tolist()))


def score(loaded: Loaded, z_BE: np.ndarray, z_class_SE: np.ndarray) -> np.ndarray:
    """(pictures, classes) probabilities, as the model's loss has them.

    Of a model with a bias (SigLIP) each class has a probability of its own, and they need not add
    up to one; of any other the classes compete, and they do.
    """
    params = jax.device_get(
        {name: x for name, x in loaded.variables["params"].items() if name.startswith("logit_")}
    )
    logits_BS = np.exp(params["logit_scale"]) * (z_BE @ z_class_SE.T).astype(np.float64)
    if "logit_bias" in params:
        return 1 / (1 + np.exp(-(logits_BS + params["logit_bias"])))
    logits_BS -= logits_BS.max(axis=1, keepdims=True)
    probability_BS = np.exp(logits_BS)
    return probability_BS / probability_BS.sum(axis=1, keepdims=True)


# -------------------------------------------------------------------------------------- writing


def write_table(path: Path, predictions: Iterator[Prediction], top: int) -> Generator[Prediction]:
    """Write predictions as CSV or Parquet, by the ending of the file, and hand them on.

    Raises:
      ValueError: the file ends in neither .csv nor .parquet.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: predictions go into a file that ends in .csv or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["sample", "key", "shard", "image_path", "label"]
    for place in range(1, top + 1):
        names += [f"class_{place}", f"probability_{place}"]
    write = _write_csv if path.suffix == ".csv" else _write_parquet
    with storage.replacing(path) as partial:
        yield from write(partial, predictions, names)


def _write_csv(path: Path, predictions: Iterator[Prediction], names: list[str]):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for prediction in predictions:
            writer.writerow(_values(prediction))
            yield prediction


def _write_parquet(path: Path, predictions: Iterator[Prediction], names: list[str]):
    kinds = {"sample": pa.int64(), "label": pa.int32()}
    schema = pa.schema(
        [
            (name, pa.float64() if name.startswith("probability") else kinds.get(name, pa.string()))
            for name in names
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        rows: list[tuple] = []

        def flush():
            columns = zip(*rows)
            arrays = [pa.array(list(c), field.type) for c, field in zip(columns, schema)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            rows.clear()

        for prediction in predictions:
            rows.append(_values(prediction))
            if len(rows) == 50_000:
                flush()
            yield prediction
        if rows:
            flush()


def _values(prediction: Prediction) -> tuple:
    row = prediction.row
    pairs = zip(prediction.classes, prediction.probabilities)
    return (
        row.sample,
        row.key,
        row.shard,
        row.image_path,
        row.label,
        *(x for p in pairs for x in p),
    )


class Links:
    """A folder with a folder for each class, in which links to the pictures lie.

    Raises:
      ValueError: two classes would have one folder.
    """

    def __init__(self, root: Path, classes: Sequence[str], min_probability: float):
        self._root, self._least = root, min_probability
        self._folders = {name: folder_name(name) for name in classes}
        if len({*self._folders.values(), UNSURE}) <= len(classes):
            raise ValueError(f"{root}: two classes would share a folder: rename one of them")
        # A picture that an earlier command has sorted elsewhere would be in two classes at once.
        self._targets: dict[str, str] = {}  # of the links' names
        self._before = {link.name: link for link in root.glob("*/*")} if root.is_dir() else {}

    def add(self, prediction: Prediction, path: str | None):
        """Link the picture at `path` into the folder of its class.

        Raises:
          ValueError: it has no file of its own on this machine, or its link is another file.
        """
        row = prediction.row
        if path is None or storage.is_url(path):
            raise ValueError(
                f"{row.key} has no file of its own on this machine: links are made of pictures in "
                "folders and lists"
            )
        sure = prediction.probabilities[0] >= self._least
        folder = self._root / (self._folders[prediction.classes[0]] if sure else UNSURE)
        folder.mkdir(parents=True, exist_ok=True)
        target = os.path.abspath(path)
        link = folder / self._name(row.key, target)
        before = self._before.get(link.name, link)
        if before != link and before.is_symlink() and os.readlink(before) == target:
            raise ValueError(
                f"{before} was sorted by other classes or another model, and belongs into {folder} now: "
                "name a new folder"
            )
        if link.is_symlink() and os.readlink(link) == target:
            return
        if link.exists() or link.is_symlink():
            raise ValueError(f"{link} is there and is no link to {target}: name a new folder")
        link.symlink_to(target)

    def _name(self, key: str, target: str) -> str:
        """The key in one name, as files of two folders may be called the same; "a/b" is not "a_b"."""
        name = file_name(key)
        if self._targets.setdefault(name, target) != target:
            name = f"{xxhash.xxh3_64_hexdigest(os.fsencode(key))}_{name}"
        return name


def folder_name(name: str) -> str:
    """A class's name as that of a folder."""
    plain = file_name(name, replaced=r"[/\\\0\n\r\t:]").strip()
    return plain.replace(".", "_", 1) if plain.startswith(".") else plain or "_"

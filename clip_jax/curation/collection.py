"""The embeddings of `clip-jax embed` with the source that they are of."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from clip_jax.collection.embeddings import Embeddings, open_embeddings
from clip_jax.collection.origin import reopen
from clip_jax.config import DataConfig
from clip_jax.curation.concepts import hash_keys
from clip_jax.curation.pixels import Pixels
from clip_jax.curation.vectors import Rows
from clip_jax.data.samples import Sample, Source
from clip_jax.data.sources.subset import base
from clip_jax.data.subset_file import write_subset
from clip_jax.redaction import redact


class EmbeddedSource:
    """A row for each sample that could be embedded; the others are in no row.

    Raises:
      ValueError: the embeddings are not of this source, or do not say which sample a row is of.
    """

    def __init__(self, embeddings: Embeddings, source: Source):
        manifest, root = embeddings.manifest, embeddings.root
        if manifest is None or "sample" not in embeddings.metadata.column_names:
            raise ValueError(
                f"{root} does not say which sample a row is of: make it with clip-jax embed"
            )
        if manifest["source_fingerprint"] != source.fingerprint:
            raise ValueError(
                f"{root} has the embeddings of {manifest['origin']['source']} ({manifest['samples']:_} samples), "
                f"and {source.name} has {len(source):_} samples and another fingerprint: embed this source, "
                "or name the one that was embedded, with the same data.subset"
            )
        self.source, self.embeddings = source, embeddings
        self.model = manifest["model_fingerprint"]
        self.image: Rows | None = embeddings.vectors.get("image")
        self.text: Rows | None = embeddings.vectors.get("text")
        self.sample_N = embeddings.metadata["sample"].to_numpy()

    def __len__(self) -> int:
        return self.embeddings.rows

    def pixels(self, data: DataConfig) -> Pixels:
        """The pictures, to be compared."""
        return Pixels(self.source, self.sample_N, data)

    def key_hashes(self) -> np.ndarray:
        """(rows,) uint64."""
        return hash_keys(_texts(self.embeddings.metadata["key"]))

    def keys(self, rows_N: np.ndarray) -> list[str]:
        return self.embeddings.metadata["key"].take(pa.array(rows_N)).to_pylist()

    def captions(self, rows_N: np.ndarray) -> list[str]:
        return self.embeddings.metadata["caption"].take(pa.array(rows_N)).to_pylist()

    def write_subset(self, path: str, rows_N: np.ndarray, *, made_by: str):
        """The subset file of some rows, of the whole source where this one is a subset."""
        whole, number_N = base(self.source, self.sample_N[rows_N])
        about = {
            "source": redact(whole.name),
            "fingerprint": whole.fingerprint,
            "samples": len(whole),
        }
        write_subset(path, number_N, made_by=made_by, **about)


class EvaluationSet:
    """Image embeddings that a collection is compared with, with the keys of their rows.

    Raises:
      ValueError: they are of another model, or there are no images among them.
    """

    def __init__(self, path: str, model: str):
        embeddings = open_embeddings(path)
        manifest = embeddings.manifest or {}
        if manifest.get("model_fingerprint") != model:
            raise ValueError(
                f"{path} was not embedded with the model of the collection: their cosines mean nothing. "
                "Embed both with the same weights"
            )
        if "image" not in embeddings.vectors:
            raise ValueError(f"{path} has no embeddings of images")
        self.name, self.rows = str(manifest["origin"]["source"]), embeddings.vectors["image"]
        self.embeddings, self.source = embeddings, reopen(embeddings)

    def pixels(self, data: DataConfig) -> Pixels:
        """The pictures, to be compared.

        Raises:
          ValueError: they are not where they were embedded from.
        """
        if self.source is None:
            raise ValueError(
                f"{self.embeddings.root}: the pictures of {self.name} cannot be read, which confirm what is "
                "near: put them back, or let embeddings decide alone with --pixels-above None"
            )
        return Pixels(self.source, self.embeddings.metadata["sample"].to_numpy(), data)

    def sample(self, row: int) -> Sample | None:
        """The sample of a row, where the source is still there."""
        if self.source is None:
            return None
        return self.source[self.embeddings.metadata["sample"][row].as_py()]

    def key(self, row: int) -> str:
        return self.embeddings.metadata["key"][row].as_py()

    def caption(self, row: int) -> str:
        return self.embeddings.metadata["caption"][row].as_py()


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    for chunk in column.chunks:
        for batch in range(0, len(chunk), 1 << 16):
            yield from chunk.slice(batch, 1 << 16).to_pylist()

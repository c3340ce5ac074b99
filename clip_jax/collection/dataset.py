"""Samples of a source as they are embedded: the pixels, the first caption, and what tells one from another."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clip_jax.config import DataConfig, PreprocessConfig
from clip_jax.data.dataset import Spec, Tokenizer, or_bad, with_rotation
from clip_jax.data.images.transforms import eval_image
from clip_jax.data.samples import BadSample, Source, printable
from clip_jax.redaction import redact


class Row(NamedTuple):
    """A sample besides its embeddings: a row of the metadata."""

    image_path: str  # the path or URL of the image's own file; its key where it lies in a shard
    caption: str
    key: str
    shard: str
    sample: int  # its number in the source
    label: int | None
    captions: int  # how many it has; the first one is embedded
    file: str | None = None  # the path of the image's own file, which metadata has without secrets


class EmbedDataset:
    """Row r of batch b is sample steps[b] x `rows` + r; rows behind the last sample are empty.

    A sample that cannot be used is an empty row as well, with a `BadSample` in "about".
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer | None,
        cfg: DataConfig,
        *,
        steps: Sequence[int],
        batch_size: int,
        image_size: int,
        preprocess: PreprocessConfig,
        kinds: Sequence[str],
    ):
        self.rows = batch_size
        self._source, self._tokenizer, self._cfg = source, tokenizer, cfg
        self._steps, self._image_size = steps, image_size
        self._preprocess = with_rotation(preprocess, cfg)
        spec = {"about": ((batch_size,), np.dtype(object))}
        if "image" in kinds:
            spec["image"] = ((batch_size, image_size, image_size, 3), np.dtype(np.uint8))
        if "text" in kinds:
            assert tokenizer is not None
            spec["tokens"] = ((batch_size, tokenizer.context_length), np.dtype(np.int32))
        self.spec: Spec = spec

    def __getitem__(self, number: int) -> dict:
        step, row = divmod(number, self.rows)
        index = self._steps[step] * self.rows + row
        found: dict = {name: np.zeros(shape[1:], kind) for name, (shape, kind) in self.spec.items()}
        found |= {"about": None, "bad": []}
        if index >= len(self._source):
            return found
        try:
            return found | self._read(index)
        except BadSample as error:
            return found | {"about": error, "bad": [error]}

    def samples(self, arrays: dict[str, np.ndarray]) -> int:
        """Rows that say something of a sample, if only that it cannot be used."""
        return sum(about is not None for about in arrays["about"])

    def release(self, step: int):
        """Nothing is kept of a step."""

    def close(self):
        """Nothing is open."""

    def _read(self, index: int) -> dict:
        sample = self._source[index]
        found = {}
        if "tokens" in self.spec:
            if not sample.captions:
                raise BadSample("missing-caption", key=sample.key, shard=sample.shard)
            found["tokens"] = or_bad(sample, self._tokenizer, [sample.captions[0]])[0]
        if "image" in self.spec:
            found["image"] = or_bad(
                sample,
                eval_image,
                sample.image,
                self._preprocess,
                self._image_size,
                self._cfg.max_image_pixels,
            )
        found["about"] = Row(
            image_path=redact(printable(sample.path or sample.key)),
            caption=sample.captions[0] if sample.captions else "",
            key=redact(sample.key),
            shard=redact(sample.shard),
            sample=index,
            label=sample.label,
            captions=len(sample.captions),
            file=sample.path,
        )
        return found

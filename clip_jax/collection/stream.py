"""The samples of a source with their embeddings, batch by batch, on all devices of a mesh."""

from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from clip_jax.collection.dataset import EmbedDataset
from clip_jax.config import DataConfig
from clip_jax.data.bad_samples import BadSamples
from clip_jax.data.batches import ThreadBatches
from clip_jax.data.loader import cores
from clip_jax.data.samples import Source
from clip_jax.evaluation.encode import Encoder, check_finite, trim
from clip_jax.weights.load import Loaded


def embedded_batches(
    loaded: Loaded,
    source: Source,
    data: DataConfig,
    mesh: Mesh,
    *,
    starts: Sequence[int],
    batch_size: int,
    kinds: Sequence[str],
    bad_samples: BadSamples,
    whole: int,
) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
    """Embed the batches that begin at the samples `starts`, multiples of `batch_size`.

    Args:
      loaded: the model.
      source: the samples.
      data: how they are read, and how many may be bad.
      mesh: of devices of this process.
      starts: the first sample of each batch.
      batch_size: samples of a batch; the last one of the source is filled up.
      kinds: "image", "text" or both.
      bad_samples: counts bad samples.
      whole: samples in all, of which `data.max_bad_share` may be bad.

    Yields:
      The first sample, (batch,) objects, each a `Row`, a `BadSample` or None behind the last
      sample, and the embeddings, (batch, E) float32 by kind.

    Raises:
      ValueError: too many samples are bad.
    """
    config = loaded.model.config
    encoder = Encoder(loaded.model, loaded.variables, mesh, batch_size=batch_size)
    dataset = EmbedDataset(
        source,
        loaded.tokenizer,
        data,
        steps=[first // batch_size for first in starts],
        batch_size=batch_size,
        image_size=config.vision.image_size,
        preprocess=config.preprocess,
        kinds=kinds,
    )

    def check(bad_samples: BadSamples):
        bad_samples.check(data.max_bad_share, whole=whole)

    def trimmed(batches):
        for batch in batches:
            if "tokens" in batch:
                batch["tokens"] = trim(config.text, batch["tokens"])
            yield batch

    threads = data.threads or cores()
    counting = {"bad_samples": bad_samples, "check": check}
    with ThreadBatches(dataset, 0, len(starts), threads=threads, **counting) as batches:
        for first, (batch, z) in zip(starts, encoder.encode_pairs(trimmed(batches))):
            for kind, z_BE in z.items():
                check_finite(z_BE, f"{kind}s from sample {first} on")
            yield first, batch["about"], z

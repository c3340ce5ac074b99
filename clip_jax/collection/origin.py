"""The source that a collection was embedded from, opened again for its pictures."""

import logging

from clip_jax.collection.embeddings import Embeddings
from clip_jax.config import DataConfig
from clip_jax.config_io import from_json
from clip_jax.data.samples import Source
from clip_jax.data.sources import registry

log = logging.getLogger(__name__)


def reopen(embeddings: Embeddings) -> Source | None:
    """The source that `clip-jax embed` read, if it is still there and still the same."""
    manifest = embeddings.manifest
    if manifest is None:
        return None
    origin = manifest["origin"]
    try:
        kept = {"data_dir": origin["data_dir"]} if origin.get("data_dir") else {}
        settings = {**manifest["reading"], **kept}
        cfg = from_json(DataConfig, settings, origin=str(embeddings.root))
        source = registry.open_source(origin["source"], origin["split"], cfg)
    except (OSError, ValueError, KeyError) as error:
        log.warning("No pictures are shown: the source of the embeddings cannot be read: %s", error)
        return None
    if source.fingerprint != manifest["source_fingerprint"]:
        log.warning("No pictures are shown: %s has changed since it was embedded", source.name)
        return None
    return source

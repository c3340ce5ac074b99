"""Search in an embedded collection: `clip_jax.search.open(path).search(z, k)`."""

from clip_jax.search.exact import Found
from clip_jax.search.index import SearchIndex
from clip_jax.search.index import open_index as open

__all__ = ["Found", "SearchIndex", "open"]

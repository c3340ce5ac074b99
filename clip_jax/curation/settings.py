"""Settings of maps, which are read without the libraries that draw them."""

from dataclasses import dataclass
from typing import Literal

from clip_jax.registry import Count, Seed, Settings


@dataclass(frozen=True, kw_only=True)
class MapConfig(Settings):
    """What the page shows."""

    method: Literal["pca", "umap"] = "pca"  # umap needs the package umap-learn
    points: Count = 4000  # samples on the map, at even distances in the source, at most
    clusters: Count = 20  # of k-means, at most
    neighbors: Count = 15  # of UMAP: more of them show the whole, fewer the details
    seed: Seed = 0  # of UMAP and k-means

    def __post_init__(self):
        super().__post_init__()
        self.refuse_ignored(self.method == "pca", "neighbors", "method is pca")

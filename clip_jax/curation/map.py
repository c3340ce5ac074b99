"""A map of a collection: embeddings in two dimensions, clusters, and the captions nearest to each."""

import warnings
from dataclasses import dataclass

import jinja2
import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from clip_jax.config import DataConfig
from clip_jax.curation.collection import EmbeddedSource
from clip_jax.curation.settings import MapConfig
from clip_jax.curation.vectors import unit
from clip_jax.data.samples import BadSample
from clip_jax.data.tools.preview import thumbnail
from clip_jax.redaction import redact

SIDE, QUALITY = 72, 70  # of a thumbnail: pixels of its longer side, JPEG quality
SCALE = 10_000  # coordinates are whole numbers up to this
TEXTS = 5  # captions shown for a cluster

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("clip_jax.curation", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)


@dataclass(frozen=True)
class Cluster:
    """Samples that k-means put together."""

    size: int
    captions: tuple[str, ...]  # the nearest first
    x: float  # of the median sample on the map
    y: float


@dataclass(frozen=True)
class Map:
    """A map. P counts its points."""

    row_P: np.ndarray  # rows of the collection, rising
    xy_P2: np.ndarray  # float, in 0 to 1, with the sides in their proportion
    cluster_P: np.ndarray  # the largest cluster is 0
    clusters: list[Cluster]


def make_map(collection: EmbeddedSource, cfg: MapConfig) -> Map:
    """Draw the image embeddings of a collection.

    Raises:
      ValueError: the collection has no image embeddings, or fewer than three.
    """
    if collection.image is None or len(collection) < 3:
        raise ValueError(
            "a map needs the embeddings of at least 3 images: embed the source with them"
        )
    count = min(cfg.points, len(collection))
    row_P = np.arange(count) * len(collection) // count
    z_PE = unit(collection.image, row_P)
    xy_P2 = _project(z_PE, cfg)
    found = KMeans(min(cfg.clusters, count), n_init=4, random_state=cfg.seed).fit(z_PE)
    size_K = np.bincount(found.labels_, minlength=len(found.cluster_centers_))
    order_K = np.argsort(-size_K, kind="stable")
    rank_K = np.argsort(order_K)
    cluster_P = rank_K[found.labels_]
    centers_KE = found.cluster_centers_[order_K[: np.count_nonzero(size_K)]]
    texts = _nearest_captions(collection, row_P, z_PE, centers_KE)
    clusters = []
    for number, captions in enumerate(texts):
        x, y = np.median(xy_P2[cluster_P == number], axis=0).tolist()
        clusters.append(Cluster(int((cluster_P == number).sum()), captions, x, y))
    return Map(row_P, xy_P2, cluster_P, clusters)


def render(collection: EmbeddedSource, drawn: Map, cfg: MapConfig, *, data: DataConfig) -> str:
    """The page, with all that it shows inside it."""
    keys = collection.keys(drawn.row_P)
    captions = collection.captions(drawn.row_P)
    points = [
        [*xy, cluster, _thumbnail(collection, row, data), caption, redact(key)]
        for xy, cluster, row, caption, key in zip(
            np.rint(drawn.xy_P2 * SCALE).astype(int).tolist(),
            drawn.cluster_P.tolist(),
            drawn.row_P.tolist(),
            captions,
            keys,
        )
    ]
    clusters = [
        {"size": one.size, "captions": one.captions, "x": one.x * SCALE, "y": one.y * SCALE}
        for one in drawn.clusters
    ]
    return ENVIRONMENT.get_template("map.html.jinja").render(
        name=redact(collection.source.name),
        method={"pca": "PCA", "umap": "UMAP"}[cfg.method],
        shown=len(points),
        samples=len(collection),
        content={"points": points, "clusters": clusters, "scale": SCALE},
    )


def _project(z_PE: np.ndarray, cfg: MapConfig) -> np.ndarray:
    """(P, 2), in 0 to 1."""
    if cfg.method == "umap":
        # It loads a compiler, and warns that a part of it needs TensorFlow.
        with warnings.catch_warnings(action="ignore"):
            from umap import UMAP

        neighbors = max(2, min(cfg.neighbors, len(z_PE) - 1))
        # One thread, so that the seed decides the map.
        reducer = UMAP(n_neighbors=neighbors, metric="cosine", random_state=cfg.seed, n_jobs=1)
        xy_P2 = reducer.fit_transform(z_PE)
    else:
        xy_P2 = PCA(2, svd_solver="full").fit_transform(z_PE)
    xy_P2 = np.asarray(xy_P2, np.float64) - xy_P2.min(axis=0)
    return xy_P2 / max(float(xy_P2.max()), 1e-12)


def _nearest_captions(collection: EmbeddedSource, row_P, z_PE, centers_KE) -> list[tuple[str, ...]]:
    """The captions nearest to each center, different ones.

    With text embeddings, both sides are taken from their means: images and texts of a CLIP model lie in
    two places, and a text near to the place of the images would be near to every cluster. Without
    them, these are the captions of the images that are nearest.
    """
    if collection.text is not None:
        text_PE = unit(collection.text, row_P)
        closeness_KP = (centers_KE - z_PE.mean(axis=0)) @ (text_PE - text_PE.mean(axis=0)).T
    else:
        closeness_KP = centers_KE @ z_PE.T
    texts = []
    for closeness_P in closeness_KP:
        order_P = np.argsort(-closeness_P, kind="stable")[: 50 * TEXTS]
        captions = collection.captions(row_P[order_P])
        texts.append(tuple(dict.fromkeys(filter(None, captions)))[:TEXTS])
    return texts


def _thumbnail(collection: EmbeddedSource, row: int, data: DataConfig) -> str:
    try:
        sample = collection.source[int(collection.sample_N[row])]
        return thumbnail(sample, data, side=SIDE, quality=QUALITY)[0]
    except BadSample:  # it could be read when it was embedded
        return ""

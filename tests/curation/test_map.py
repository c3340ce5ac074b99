"""A map puts together what is near, with the captions of it."""

import json
import re
import sys
import types

import numpy as np
import pytest

from clip_jax.collection.embeddings import open_embeddings
from clip_jax.config import DataConfig
from clip_jax.curation import map as maps
from clip_jax.curation.collection import EmbeddedSource
from clip_jax.curation.settings import MapConfig


@pytest.fixture
def two_kinds(vectors, near, pictures, write_embeddings, tmp_path):
    """80 pictures around one place, 40 around another; texts lie elsewhere, next to their images."""
    rng = np.random.default_rng(0)
    centers = vectors(2, 64, seed=3)
    kind_N = (np.arange(120) % 3 == 0).astype(int)
    image = near(centers[kind_N], 0.9, rng)
    text = image + 3 * vectors(1, 64, seed=4)  # the gap between images and texts of a CLIP model
    folder = write_embeddings(tmp_path / "e", pictures(120), np.arange(120), image=image, text=text)
    return EmbeddedSource(open_embeddings(folder), pictures(120)), kind_N


def test_what_is_near_lies_together_with_its_captions(two_kinds):
    collection, kind_N = two_kinds
    drawn = maps.make_map(collection, MapConfig(clusters=2))
    np.testing.assert_array_equal(drawn.cluster_P, kind_N)  # the larger cluster is the first
    assert [one.size for one in drawn.clusters] == [80, 40]
    assert all("dog" in text for text in drawn.clusters[0].captions)
    assert all("fez" in text for text in drawn.clusters[1].captions)
    assert drawn.xy_P2.min() >= 0 and drawn.xy_P2.max() == 1
    centers = np.stack([drawn.xy_P2[kind_N == kind].mean(axis=0) for kind in (0, 1)])
    spread = max(drawn.xy_P2[kind_N == kind].std(axis=0).max() for kind in (0, 1))
    assert np.linalg.norm(centers[0] - centers[1]) > 3 * spread


def test_umap_is_asked_for_cosines_and_one_thread(two_kinds, monkeypatch):
    """A stand-in for the library, which compiles for half a minute when it is first used."""
    collection, _ = two_kinds
    asked = []

    class Umap:
        def __init__(self, **settings):
            asked.append(settings)

        def fit_transform(self, z_PE):
            return np.stack([z_PE[:, 0] * 3 - 1, z_PE[:, 1]], axis=1)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    drawn = maps.make_map(collection, MapConfig(method="umap", points=40, neighbors=50, seed=5))
    assert asked == [{"n_neighbors": 39, "metric": "cosine", "random_state": 5, "n_jobs": 1}]
    assert drawn.xy_P2.min() == 0 and drawn.xy_P2.max() == 1
    z_PE = collection.image.take(drawn.row_P)
    assert np.corrcoef(drawn.xy_P2[:, 0], z_PE[:, 0])[0, 1] > 0.99
    with pytest.raises(ValueError, match="method is pca"):
        MapConfig(neighbors=50)


def test_the_page_holds_all_that_it_shows(two_kinds):
    collection, _ = two_kinds
    cfg = MapConfig(points=50, clusters=3)
    page = maps.render(collection, maps.make_map(collection, cfg), cfg, data=DataConfig())
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])
    points = content["points"]
    assert len(points) == 50 and points[7][5] == f"p/{7 * 120 // 50}"
    assert all(point[3].startswith("data:image/jpeg;base64,") for point in points)
    assert sum(cluster["size"] for cluster in content["clusters"]) == 50
    assert 'src="http' not in page and 'href="http' not in page


def test_the_same_settings_give_the_same_page(two_kinds):
    collection, _ = two_kinds
    cfg = MapConfig(points=60, clusters=5, seed=3)
    pages = [
        maps.render(collection, maps.make_map(collection, cfg), cfg, data=DataConfig())
        for _ in "ab"
    ]
    assert pages[0] == pages[1]

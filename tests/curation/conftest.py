"""Unit vectors in which some are planted near to others, and embedded sources that hold them."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.data.samples import Sample
from clip_jax.data.sources.registry import open_source


def _near(z_NE: np.ndarray, cosine, rng: np.random.Generator) -> np.ndarray:
    """For each unit vector another at exactly this cosine from it, before rounding to float32."""
    other_NE = rng.normal(size=z_NE.shape)
    other_NE -= (other_NE * z_NE).sum(axis=1, keepdims=True) * z_NE
    other_NE /= np.linalg.norm(other_NE, axis=1, keepdims=True)
    cosine = np.broadcast_to(np.asarray(cosine, float), (len(z_NE),))[:, None]
    return cosine * z_NE + np.sqrt(1 - cosine**2) * other_NE


@pytest.fixture
def near():
    """(vectors, cosine or one for each, rng) -> vectors at that cosine from them."""
    return _near


@pytest.fixture
def vectors():
    """(rows, dim, seed) -> random unit vectors, float64."""

    def make(rows: int, dim: int = 32, seed: int = 0) -> np.ndarray:
        z_NE = np.random.default_rng([seed, 1]).normal(size=(rows, dim))
        return z_NE / np.linalg.norm(z_NE, axis=1, keepdims=True)

    return make


class Pictures:
    """A source of `length` plain pictures."""

    def __init__(self, length: str, split: str, cfg: DataConfig):
        self._length = int(length)
        self.fingerprint = f"{self._length:016x}"

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.new("RGB", (24, 18), (index % 256, 90, 200)).save(file, "PNG")
        caption = f"picture {index} of a {'dog' if index % 3 else 'rare fez'}"
        return Sample(file.getvalue(), (caption,), key=f"p/{index}", shard="p")


def _write_embeddings(folder: Path, source, samples, *, part: int = 64, **vectors) -> Path:
    """An embedded collection in parts, as `clip-jax embed` writes it, of these vectors by kind."""
    kinds = {"image": "img_emb", "text": "text_emb"}
    for kind, z_NE in vectors.items():
        (folder / kinds[kind]).mkdir(parents=True)
        for number, first in enumerate(range(0, len(z_NE), part)):
            name = f"{kinds[kind]}_{number:04d}.npy"
            np.save(folder / kinds[kind] / name, z_NE[first : first + part].astype(np.float16))
    (folder / "metadata").mkdir()
    for number, first in enumerate(range(0, len(samples), part)):
        rows = [source[i] for i in samples[first : first + part]]
        table = pa.table(
            {
                "caption": [row.captions[0] for row in rows],
                "key": [row.key for row in rows],
                "sample": np.asarray(samples[first : first + part], np.int64),
            }
        )
        pq.write_table(table, folder / "metadata" / f"metadata_{number:04d}.parquet")
    manifest = {
        "origin": {"source": source.name, "split": "train", "data_dir": "data"},
        "reading": {},
        "source_fingerprint": source.fingerprint,
        "samples": len(source),
        "rows": len(samples),
        "model_fingerprint": "m",
        "dtype": "float16",
        "kinds": list(vectors),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def write_embeddings():
    """(folder, source, sample numbers, image=vectors, text=vectors) -> the folder"""
    return _write_embeddings


@pytest.fixture
def pictures(monkeypatch):
    """(length, subset=...) -> an open source of pictures."""
    monkeypatch.setitem(sys.modules, "planted_source.of", sys.modules[__name__])

    def make(length: int, **settings):
        return open_source(f"planted_source.of:Pictures:{length}", "train", DataConfig(**settings))

    return make

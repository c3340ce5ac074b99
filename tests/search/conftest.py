"""Vectors like those of pictures, in the folders of an embedded collection."""

import contextlib
import json
import socket
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_jax import sharding
from clip_jax.collection.dataset import Row
from clip_jax.collection.embed import READING
from clip_jax.collection.layout import Layout, Part, manifest
from clip_jax.collection.parts import PartWriter
from clip_jax.config import DataConfig, MeshConfig, PreprocessConfig
from clip_jax.config_io import to_json
from clip_jax.data.images.transforms import eval_image
from clip_jax.data.sources import registry
from clip_jax.search.http import make_server, serve
from clip_jax.search.index import build_index, open_index
from clip_jax.search.pictures import Pictures
from clip_jax.search.queries import QueryEncoder
from clip_jax.search.server import Service, create_app


@pytest.fixture(scope="session")
def all_devices():
    """A mesh of all eight devices."""
    return sharding.make_mesh(MeshConfig())


def clustered(seed: int, rows: int, dim: int) -> np.ndarray:
    """Unit vectors around some centres, on few directions, as embeddings of a model lie."""
    rng = np.random.default_rng(seed)
    centres_CE = np.random.default_rng(99).normal(size=(16, dim))
    basis_FE = np.random.default_rng(98).normal(size=(6, dim))
    x_NE = centres_CE[rng.integers(16, size=rows)] + 0.5 * rng.normal(size=(rows, 6)) @ basis_FE
    return (x_NE / np.linalg.norm(x_NE, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def vectors_of():
    """(seed, rows, dim) -> unit vectors."""
    return clustered


def write(folder, x_NE, *, parts=3, dtype="float16", captions=None):
    """A folder as clip-retrieval writes it."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, rows_N in enumerate(np.array_split(np.arange(len(x_NE)), parts)):
        np.save(folder / f"img_emb/img_emb_{number:04d}.npy", x_NE[rows_N].astype(dtype))
        table = {
            "image_path": [f"{row}.jpg" for row in rows_N],
            "caption": [captions[row] if captions else f"picture {row}" for row in rows_N],
            "label": rows_N % 5,
        }
        pq.write_table(pa.table(table), folder / f"metadata/metadata_{number:04d}.parquet")
    return folder


@pytest.fixture(scope="session")
def write_embeddings():
    """(folder, vectors) -> folder"""
    return write


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory):
    """A folder of 1,200 rows of 32 numbers, which is only read."""
    folder = tmp_path_factory.mktemp("embeddings") / "e"
    return write(folder, clustered(0, 1200, 32))


# ------------------------------------------------------------------- a server of colored pictures

COLORS = {"red": (220, 30, 30), "green": (30, 190, 40), "blue": (40, 60, 230)}
PICTURES = 60


def embed_pixels(pixels_HWC: np.ndarray) -> np.ndarray:
    """The mean color as a vector of unit length, with room for what makes pictures differ."""
    z_E = np.zeros(8, np.float32)
    z_E[:3] = pixels_HWC.reshape(-1, 3).mean(axis=0) / 255 - 0.3
    z_E[3:6] = pixels_HWC[:4].reshape(-1, 3).std(axis=0) / 255
    return z_E / np.linalg.norm(z_E)


class ColorEncoder(QueryEncoder):
    """Stands for a model: texts are names of colors, pictures are their mean color."""

    def __init__(self, index):
        self._index = index

    def pixels(self, data):
        return eval_image(data, PreprocessConfig(), 16, 1_000_000)

    def _text(self, texts):
        known = [next((c for name, c in COLORS.items() if name in t), (9, 9, 9)) for t in texts]
        return [embed_pixels(np.full((4, 4, 3), color)) for color in known]

    def _pixels(self, images):
        return [embed_pixels(image) for image in images]


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """The folder of an index of pictures in a folder, embedded by their colors."""
    root = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(PICTURES):
        name = list(COLORS)[number % 3]
        pixels_HWC = np.array(COLORS[name]) + rng.integers(-30, 30, (48, 48, 3))
        path = root / f"pictures/{name}/{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HWC.clip(0, 255).astype(np.uint8)).save(path)
    cfg = DataConfig(data_dir=str(root / "data"))
    source = registry.open_source(f"images:{root}/pictures", "train", cfg)
    reading = to_json(cfg)
    settings = {
        "origin": {"source": source.name, "split": "train", "data_dir": cfg.data_dir},
        "source_fingerprint": source.fingerprint,
        "reading": {name: reading[name] for name in READING},
        "kinds": ["image"],
        "dtype": "float32",
        "dim": 8,
    }
    layout, part = Layout(str(root / "embeddings"), 1), Part(0, 0, len(source))
    writer = PartWriter(layout, part, ["image"], "float32", "settings")
    rows = [source[number] for number in range(len(source))]
    about = np.empty(len(rows), object)
    about[:] = [
        Row(sample.path, f"a {sample.shard} square {n}", sample.key, sample.shard, n, n % 4, 0)
        for n, sample in enumerate(rows)
    ]
    z_NE = [embed_pixels(np.asarray(Image.open(sample.path))) for sample in rows]
    writer.add(0, about, {"image": np.stack(z_NE)})
    layout.write("manifest.json", json.dumps(manifest(settings, [writer.write()])).encode())
    build_index(root / "embeddings", root / "index")
    return root / "index"


@contextlib.contextmanager
def running(folder, **options):
    """The address of a server of an index, in a thread of this process."""
    index = open_index(folder)
    service = Service(index, ColorEncoder(index), Pictures(index))
    options = {"token": None, "hosts": ("127.0.0.1", "localhost"), **options}
    server = make_server(create_app(service, **options))
    bound = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    thread = threading.Thread(target=serve, args=(server, bound), kwargs={"started": ready.set})
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def start_server():
    """`start_server(index, token=..., hosts=...)`: a context manager that gives an address."""
    return running


@pytest.fixture(scope="module")
def address(shop):
    """A server without a token."""
    with running(shop) as found:
        yield found

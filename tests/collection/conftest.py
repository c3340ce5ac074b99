"""A tiny model, pictures in memory, and an embedded collection of them."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax import sharding
from clip_jax.collection.embed import EmbedConfig, embed
from clip_jax.config import DataConfig, MeshConfig
from clip_jax.data.samples import BadSample, Sample
from clip_jax.models.clip import create_model
from clip_jax.weights.load import Loaded, preprocess_of

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
SAMPLES, BAD = 43, (5, 17)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Noisy squares of one color each, some of which cannot be read."""

    size: int = SAMPLES
    bad: tuple[int, ...] = BAD
    reads: list = dataclasses.field(default_factory=list)
    name = "pictures"
    fingerprint = "0123"
    classes = tuple(COLORS)
    templates = ("a {} square", "{}")
    notes = ()
    lost = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        self.reads.append(index)
        if index in self.bad:
            raise BadSample("missing-file", key=f"p/{index}", shard="p")
        label = index % len(COLORS)
        color = list(COLORS)[label]
        noise_HWC = np.random.default_rng(index).integers(-25, 25, (16, 16, 3))
        file = io.BytesIO()
        Image.fromarray((np.array(COLORS[color]) + noise_HWC).astype(np.uint8)).save(file, "PNG")
        return Sample(
            image=file.getvalue(),
            captions=(f"number {index} is {color}", "another"),
            key=f"p/{index}",
            shard="p",
            label=label,
            path=f"/pictures/{index}.png?token=abc" if index % 2 else None,
        )


class Words:
    """Every word by a hash of it; the end token is the largest id."""

    context_length = 8
    vocab_size = 64

    def __call__(self, texts, rng=None, mask="truncate"):
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts):
            ids = [1 + sum(map(ord, word)) % 60 for word in text.split()][:7]
            row[: len(ids) + 1] = [*ids, 63]
        return rows


@pytest.fixture(scope="session")
def mesh():
    """One device: that several give the same is tested where they are used."""
    return sharding.make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """A tiny model with random weights."""
    model = create_model("ViT-test")
    images = np.zeros((1, 16, 16, 3), np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images, np.ones((1, 8), np.int32))
    return Loaded(model, jax.device_get(variables), Words(), preprocess_of(model.config))


@pytest.fixture(scope="session")
def apply(loaded):
    """The model's own methods, compiled: `apply(variables, x, method=...)`."""
    return jax.jit(loaded.model.apply, static_argnames="method")


@pytest.fixture(scope="session")
def pictures():
    """The class of sources in memory."""
    return Pictures


@pytest.fixture(scope="session")
def embedded_by(loaded, mesh):
    """`embedded_by(folder)` embeds the pictures there, in parts of 16 and batches of 8."""

    def run(out, *, source=None, data=None, **changes) -> dict:
        fields = {field.name for field in dataclasses.fields(EmbedConfig)}
        cfg = {name: changes.pop(name) for name in fields & changes.keys()}
        cfg = EmbedConfig(**{"batch_size": 8, "part_size": 16, "dtype": "float32", **cfg})
        data = data or DataConfig(threads=2, max_bad_share=0.5)
        where = {"mesh": mesh, "origin": {"model": "m", "source": "s"}, **changes}
        return embed(loaded, source or Pictures(), str(out), cfg=cfg, data=data, **where)

    return run


@pytest.fixture(scope="session")
def collection(embedded_by, tmp_path_factory):
    """The folder of a complete collection, which is only read."""
    folder = tmp_path_factory.mktemp("collection") / "embeddings"
    embedded_by(folder)
    return folder

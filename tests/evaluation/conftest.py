"""A tiny model, a source in memory and a mesh of all devices."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax import sharding
from clip_jax.config import DataConfig, EvaluationConfig, LossConfig, MeshConfig
from clip_jax.data.loader import eval_batches
from clip_jax.data.samples import BadSample, Sample
from clip_jax.evaluation.encode import Encoder
from clip_jax.evaluation.suite import Evaluators
from clip_jax.models.clip import create_model

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


class MemorySource:
    """Squares of one color each; every third is in the group "held_out"."""

    name = "memory"
    fingerprint = "00"
    classes = tuple(COLORS)
    templates = ("a {} square", "{}")

    def __init__(self, size: int, *, bad: tuple[int, ...] = ()):
        self.size, self.bad = size, bad
        self.reads = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        if index in self.bad:
            raise BadSample("missing-file", key=str(index), shard="memory")
        label = index % len(COLORS)
        color = list(COLORS)[label]
        rng = np.random.default_rng(index)
        pixels_HWC = np.array(list(COLORS.values())[label]) + rng.integers(-25, 25, (16, 16, 3))
        file = io.BytesIO()
        Image.fromarray(pixels_HWC.astype(np.uint8)).save(file, "PNG")
        return Sample(
            image=file.getvalue(),
            captions=(f"number {index} is {color}", *(f"a {color} square",) * (index % 2)),
            key=str(index),
            shard="memory",
            label=label,
            group="held_out" if label == 2 else "seen",
        )


class Words:
    """Every word by a hash of it; the end token is the largest id."""

    context_length = 8
    vocab_size = 64

    def __call__(self, texts, rng=None):
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts):
            ids = [1 + sum(map(ord, word)) % 60 for word in text.split()][:7]
            row[: len(ids) + 1] = [*ids, 63]
        return rows


@pytest.fixture(scope="session")
def mesh():
    return sharding.make_mesh(MeshConfig())


@pytest.fixture(scope="session")
def model():
    return create_model("ViT-test")


@pytest.fixture(scope="session")
def variables(model):
    images = np.zeros((1, 16, 16, 3), np.uint8)
    return jax.jit(model.init)(jax.random.key(0), images, np.ones((1, 8), np.int32))


@pytest.fixture(scope="session")
def apply():
    """One method of a model, compiled: operation by operation it takes seconds."""
    return jax.jit(
        lambda model, method, *args: model.apply(*args, method=method), static_argnums=(0, 1)
    )


@pytest.fixture
def source():
    return MemorySource(21)


@pytest.fixture
def memory_source():
    """Makes sources of other sizes."""
    return MemorySource


@pytest.fixture
def tokenizer():
    return Words()


def unit_rows(seed: int, *shape: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def unit():
    """Random unit vectors from a seed and a shape."""
    return unit_rows


def measure(mesh) -> dict[str, np.ndarray]:
    """Embeddings and an evaluation of 21 samples, one of them bad, in batches of 8."""
    model, source, tokenizer = create_model("ViT-test"), MemorySource(21, bad=(4,)), Words()
    images = np.zeros((1, 16, 16, 3), np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images, np.ones((1, 8), np.int32))
    # From the host, because what is on one process's device cannot go to all of them.
    encoder = Encoder(model, jax.device_get(variables), mesh, batch_size=8)
    data = DataConfig(batch_size=8, threads=1, max_bad_share=0.5)
    batches = eval_batches(
        source,
        tokenizer,
        data,
        batch_size=8,
        image_size=16,
        preprocess=model.config.preprocess,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with batches:
        encoded = encoder.encode_images(batches)
    cfg = EvaluationConfig(batch_size=8)
    loss = LossConfig()
    evaluators = Evaluators(source, {}, model, mesh, tokenizer, cfg=cfg, data=data, loss=loss)
    evaluation = evaluators(encoder.variables)
    assert (evaluation.examples is None) == (jax.process_index() > 0)
    return {
        "images": encoded.z_NE,
        "index": encoded.index_N,
        "texts": encoder.encode_texts(tokenizer([f"number {i}" for i in range(13)])),
        "metrics": np.array(list(evaluation.metrics.values())),
    }


@pytest.fixture
def evaluated_arrays():
    """`measure`, for comparing this process with others."""
    return measure

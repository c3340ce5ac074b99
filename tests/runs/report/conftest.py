"""Pictures in memory, and vectors, for reports to show."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.data.samples import Sample


class Squares:
    """Grey squares, every second one in the group "held_out"."""

    name = "squares"

    def __len__(self) -> int:
        return 21

    def __getitem__(self, index: int) -> Sample:
        file = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), 10 * index, np.uint8)).save(file, "PNG")
        return Sample(
            image=file.getvalue(),
            captions=(f"a square of grey level {10 * index}",),
            key=str(index),
            shard="memory",
            label=index % 2,
            group=("seen", "held_out")[index % 2],
        )


@pytest.fixture
def source():
    return Squares()


@pytest.fixture
def unit():
    """Random unit vectors from a seed and a shape."""

    def rows(seed: int, *shape: int) -> np.ndarray:
        x = np.random.default_rng(seed).normal(size=shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    return rows

"""A source and a tokenizer that live outside of clip_jax: named `outside.source:NAME` in the settings."""

import io

import numpy as np
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.data.samples import Sample
from clip_jax.data.tokenizers.base import Tokenizer

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "gray": (99, 99, 99)}


class Colors:
    """`length` plain pictures, each captioned with its color: all that a source needs."""

    def __init__(self, length: str, split: str, cfg: DataConfig):
        self._length = int(length)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        name = tuple(COLORS)[index % len(COLORS)]
        file = io.BytesIO()
        Image.new("RGB", (40, 40), COLORS[name]).save(file, "PNG")
        return Sample(
            image=file.getvalue(),
            captions=(f"a {name} one",),
            key=f"colors/{index}",
            shard="colors",
        )


class Bytes(Tokenizer):
    """One id a byte, and an end token."""

    kind = "bytes"
    vocab_size, end_id = 257, 256

    def __init__(self, context_length: int):
        self.context_length = context_length
        self._check_context()

    def encode(self, texts) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

"""Sources and a tokenizer whose samples can be told apart after they went through everything."""

import dataclasses
import io
import json
import sys
import tarfile

import cloudpickle
import numpy as np
import PIL
import pytest
from PIL import Image

from clip_jax.config import AugmentConfig, DataConfig, PreprocessConfig
from clip_jax.data.samples import BadSample, Sample

# Worker processes cannot import this file by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _encode(color, size=(8, 8), kind="PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, tuple(color)).save(file, kind)
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Sample i is a plain picture of color (i // 256, i % 256, tag); cropping cannot change it."""

    length: int
    bad: frozenset = frozenset()
    tag: int = 0
    captions: int = 1
    name = "numbered"
    fingerprint = "0123"
    classes = None
    templates = None

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.bad:
            raise BadSample("out-of-sorts", key=f"n/{index}", shard=f"shard-{index % 3}")
        return Sample(
            image=_encode((index // 256, index % 256, self.tag)),
            captions=tuple(f"c{number}" for number in range(self.captions)),
            key=f"n/{index}",
            shard=f"shard-{index % 3}",
            label=index % 5,
        )


@dataclasses.dataclass(frozen=True)
class Letters:
    """One token a byte, and one at the end that is drawn from the generator."""

    context_length: int = 6

    def __call__(self, texts, rng=None, mask="truncate"):
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts):
            codes = list(text.encode()[: self.context_length - 1])
            row[: len(codes)] = codes
            row[-1] = 0 if rng is None else rng.integers(1000)
        return tokens


def _ids(batch):
    return (batch["image"][:, 0, 0, 0].astype(int) * 256 + batch["image"][:, 0, 0, 1]).tolist()


def _pillow_resize(image: Image.Image, size: tuple[int, int], kernel: int) -> Image.Image:
    width, height = size
    W, H = image.size
    is_new = int(PIL.__version__.split(".", maxsplit=1)[0]) >= 13
    if not is_new and H - height > 2 * max(0, W - width):
        image = image.resize((W, height), kernel)
    return image.resize(size, kernel)


@pytest.fixture
def pillow_resize():
    """`image.resize` as version 13 does it; older ones always begin with the rows."""
    return _pillow_resize


@pytest.fixture
def encode():
    """(color, size, kind) -> the bytes of a plain image file."""
    return _encode


@pytest.fixture
def numbered():
    """The class of sources whose samples are their numbers."""
    return Numbered


@pytest.fixture
def letters():
    return Letters()


@pytest.fixture
def ids():
    """A batch of `numbered` -> the numbers of its samples."""
    return _ids


@pytest.fixture
def reading(letters):
    """What batches are read with, besides source and settings."""
    return {"tokenizer": letters, "image_size": 8, "preprocess": PreprocessConfig()}


@pytest.fixture
def settings(tmp_path):
    """DataConfig with small defaults, and changes."""

    def make(**changes):
        base = {"batch_size": 8, "threads": 2, "augment": AugmentConfig()}
        return DataConfig(data_dir=str(tmp_path / "data"), **{**base, **changes})

    return make


def _write_tar(path, samples, **options):
    """Write {name: bytes} files, in their order, as a tar."""
    with tarfile.open(path, "w", **options) as file:
        for name, data in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def write_tar():
    """(path, {name: bytes}) -> path"""
    return _write_tar


@pytest.fixture
def shards(tmp_path):
    """Three shards of ten samples each, named and colored by their numbers."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        files = {}
        for number in range(shard * 10, shard * 10 + 10):
            files[f"{number:05d}.png"] = _encode((0, number, 0))
            files[f"{number:05d}.json"] = json.dumps({"caption": f"json {number}"}).encode()
            files[f"{number:05d}.txt"] = f"text {number}\n".encode()
        _write_tar(folder / f"{shard:05d}.tar", files)
    return folder

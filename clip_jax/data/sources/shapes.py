"""The embedded dataset: pictures of colored shapes with captions, drawn here, kept as ArrayRecord."""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import tensorflow_datasets as tfds

from clip_jax import storage
from clip_jax.config import DataConfig
from clip_jax.data.samples import SourceFormat
from clip_jax.data.sources import scenes
from clip_jax.data.sources.tfds import TfdsSource

SIDE = 64  # pixels
CAPTIONS = 4  # of each scene; the first says everything
TWO_SHARE = 0.2  # of training scenes with two objects
SEED = 2021
SIZES = {"full": (24_576, 2_400), "tiny": (2_048, 240)}  # training and test scenes
HELD_OUT = frozenset(scenes.HELD_OUT)
SEEN = tuple(pair for pair in scenes.PAIRS if pair not in HELD_OUT)


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Scenes of one or two shapes. Six pairs of color and shape are only in the test split."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=name, description=f"{train} training scenes, {test} for tests")
        for name, (train, test) in SIZES.items()
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg"),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=scenes.CLASSES),  # -1: two objects
            "group": tfds.features.Text(),  # "held_out", "seen"
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        train, test = SIZES[self.builder_config.name]
        return {
            "train": self._generate_examples("train", train),
            "test": self._generate_examples("test", test),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        for number in range(count):
            rng = np.random.default_rng([SEED, split == "test", number])
            scene = _training_scene(rng) if split == "train" else _test_scene(rng, number, count)
            yield number, _example(scene, rng)


def _training_scene(rng: np.random.Generator) -> scenes.Scene:
    return scenes.random_scene(rng, SEEN, two=rng.random() < TWO_SHARE)


def _test_scene(rng: np.random.Generator, number: int, count: int) -> scenes.Scene:
    """Four in five have one object, all classes equally often; the last fifth has two."""
    if number < count * 4 // 5:
        pair = scenes.PAIRS[number % len(scenes.PAIRS)]
        return scenes.random_scene(rng, [pair])
    return scenes.random_scene(rng, scenes.PAIRS, two=True)


def _example(scene: scenes.Scene, rng: np.random.Generator) -> dict:
    pairs = [(figure.color, figure.shape) for figure in scene.figures]
    captions = [scenes.full_caption(scene, rng)]
    captions += [scenes.random_caption(scene, rng) for _ in range(CAPTIONS - 1)]
    picture_HWC = scenes.render(scene, rng, SIDE)
    # An encoded file, because for an array the builder would call TensorFlow's encoder.
    jpeg = simplejpeg.encode_jpeg(picture_HWC, quality=92, colorsubsampling="444")
    return {
        "image": io.BytesIO(jpeg),
        "captions": captions,
        "label": scenes.PAIRS.index(pairs[0]) if len(pairs) == 1 else -1,
        "group": "held_out" if HELD_OUT.intersection(pairs) else "seen",
    }


def open_source(location: str, split: str, cfg: DataConfig) -> TfdsSource:
    """The scenes of `split`, which are drawn first where they are not there yet.

    `location` is "" or "full" for all of them, "tiny" for a twelfth.
    """
    config = location or "full"
    if config not in SIZES:
        raise ValueError(f"data.source 'shapes:{config}' is not known; write shapes or shapes:tiny")
    directory = prepare(Path(cfg.data_dir).expanduser(), config)
    name = "shapes" if config == "full" else f"shapes:{config}"
    return TfdsSource(
        directory,
        split,
        name=name,
        image_column="image",
        caption_column="captions",
        templates=scenes.TEMPLATES,
    )


def has_test_split(location: str, cfg: DataConfig) -> bool:
    """It has."""
    return True


def prepare(data_dir: Path, config: str = "full") -> Path:
    """Draw the scenes into `data_dir` unless they are there; returns their folder.

    A process that is killed leaves nothing that would be taken for data, and of two that start
    at once one waits for the other.
    """
    directory = data_dir / "shapes" / config / str(Shapes.VERSION)
    if (directory / "features.json").is_file():
        return directory
    with storage.exclusive(directory.parent / "lock"):
        if (directory / "features.json").is_file():
            return directory
        for leftover in directory.parent.glob("incomplete.*"):
            shutil.rmtree(leftover)
        print(f"Drawing the shapes dataset into {directory} ...", file=sys.stderr, flush=True)
        downloads = directory.parent / "downloads"
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            tfds.disable_progress_bar()
            builder = Shapes(config=config, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare(download_dir=downloads)
        shutil.rmtree(downloads, ignore_errors=True)
    return directory


FORMAT = SourceFormat(open_source, has_test_split)

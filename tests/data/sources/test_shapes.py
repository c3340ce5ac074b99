"""The embedded dataset: the same every time, with pairs that training never shows."""

import concurrent.futures
import io
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import DataConfig
from clip_jax.data.sources import scenes, shapes
from clip_jax.data.sources.registry import open_eval_source, open_source


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    return DataConfig(source=("shapes:tiny",), data_dir=str(tmp_path_factory.mktemp("shapes")))


@pytest.fixture(scope="module")
def train(cfg):
    return open_source("shapes:tiny", "train", cfg)


@pytest.fixture(scope="module")
def test(cfg):
    return open_eval_source(cfg)


def test_sizes_are_as_stated(train, test):
    assert (len(train), len(test)) == shapes.SIZES["tiny"]


def test_tensorflow_is_never_loaded(train):
    assert "tensorflow" not in sys.modules


def test_images_decode_to_their_size(train):
    image = Image.open(io.BytesIO(train[0].image))
    assert image.size == (shapes.SIDE, shapes.SIDE) and image.format == "JPEG"


def test_no_training_scene_has_a_held_out_pair(train):
    held_out = [
        f"{color} {word}" for color, shape in scenes.HELD_OUT for word in scenes.SYNONYMS[shape]
    ]
    for sample in train:
        assert sample.group == "seen"
        assert sample.label is None or scenes.PAIRS[sample.label] not in shapes.HELD_OUT
        assert not any(pair in caption for caption in sample.captions for pair in held_out)


def test_each_color_and_each_shape_is_seen_though_pairs_are_held_out():
    assert {color for color, _ in shapes.SEEN} == set(scenes.COLORS)
    assert {shape for _, shape in shapes.SEEN} == set(scenes.SHAPES)
    assert len({color for color, _ in shapes.HELD_OUT}) == len(shapes.HELD_OUT)


def test_every_class_is_tested_equally_often_and_held_out_ones_are_marked(test):
    labels = [sample.label for sample in test if sample.label is not None]
    counts = np.bincount(labels, minlength=len(test.classes))
    assert len(labels) == 192 and (counts == 4).all()
    for sample in test:
        if sample.label is not None:
            held_out = scenes.PAIRS[sample.label] in shapes.HELD_OUT
            assert sample.group == ("held_out" if held_out else "seen")


def test_scenes_of_two_objects_have_no_class(test):
    two = [sample for sample in test if sample.label is None]
    assert len(two) == 48
    for sample in two:
        assert sum(color in sample.captions[0] for color in scenes.COLORS) >= 1


def test_classes_and_prompts_are_words_of_the_captions(train):
    assert train.classes[0] == "red circle" and all("{}" in prompt for prompt in train.templates)
    said = {word for sample in train for caption in sample.captions for word in caption.split()}
    for text in (*train.classes, *train.templates):
        assert set(text.replace("{}", "").split()) <= said


def test_it_is_the_same_when_it_is_made_again(train, tmp_path):
    again = open_source("shapes:tiny", "train", DataConfig(data_dir=str(tmp_path)))
    assert again.fingerprint == train.fingerprint
    assert all(again[index] == train[index] for index in range(0, len(train), 50))


def test_what_a_killed_process_left_is_made_again(tmp_path):
    leftover = tmp_path / "shapes" / "tiny" / "incomplete.ABC_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "shapes-train.array_record-00000-of-00001").write_bytes(b"half")
    source = open_source("shapes:tiny", "train", DataConfig(data_dir=str(tmp_path)))
    assert len(source) == 2048 and not leftover.exists()


def test_two_processes_that_start_at_once_make_it_once(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=spawn) as pool:
        made = list(pool.map(shapes.prepare, [tmp_path] * 2, ["tiny"] * 2))
    assert made[0] == made[1] == tmp_path / "shapes" / "tiny" / str(shapes.Shapes.VERSION)
    assert sorted(path.name for path in made[0].parent.iterdir()) == [
        str(shapes.Shapes.VERSION),
        "lock",
    ]


def test_a_second_opening_draws_nothing(train, cfg):
    directory = Path(cfg.data_dir) / "shapes" / "tiny"
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    open_source("shapes:tiny", "train", cfg)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_another_size_is_refused(cfg):
    with pytest.raises(ValueError, match="'shapes:huge' is not known"):
        open_source("shapes:huge", "train", cfg)

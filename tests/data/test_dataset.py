"""A row is a function of seed and place alone."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from clip_jax.config import AugmentConfig, PreprocessConfig
from clip_jax.data.dataset import MAX_TRIES, EvalDataset, TrainDataset, fill
from clip_jax.data.samples import Sample
from clip_jax.data.tokenizers.base import Tokenizer


@pytest.fixture
def train_rows(reading, settings):
    def make(*sources, process=(0, 1), seed=0, tokenizer=reading["tokenizer"], **changes):
        return TrainDataset(
            sources,
            cfg=settings(**changes),
            seed=seed,
            process_index=process[0],
            process_count=process[1],
            **reading | {"tokenizer": tokenizer},
        )

    return make


def batch_of(rows, step):
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in rows.spec.items()}
    return arrays | {"bad": fill(arrays, rows, step, range(rows.rows))}


def test_an_epoch_has_each_sample_once_though_batches_do_not_divide_it(train_rows, numbered, ids):
    rows = train_rows(numbered(30), batch_size=8)
    seen = [number for step in range(8) for number in ids(batch_of(rows, step))]
    assert sorted(seen[:30]) == list(range(30)) and sorted(seen[30:60]) == list(range(30))
    assert seen[:30] != seen[30:60]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_that_one_would_have(train_rows, numbered, processes):
    whole = batch_of(train_rows(numbered(30)), 5)
    parts = [
        batch_of(train_rows(numbered(30), process=(index, processes)), 5)
        for index in range(processes)
    ]
    for key in ("image", "tokens"):
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), whole[key])


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(train_rows, numbered):
    with pytest.raises(
        ValueError, match=r"data\.batch_size=8 must be a multiple of the 3 processes"
    ):
        train_rows(numbered(30), process=(0, 3))


def test_randomness_hangs_on_seed_sample_and_epoch_alone(train_rows, numbered):
    def tokens(rows, epoch):  # the last token is drawn from the row's generator
        both = [rows[place] for place in range(epoch * 30, epoch * 30 + 30)]
        return {int(row["image"][0, 0, 1]): int(row["tokens"][-1]) for row in both}

    first = tokens(train_rows(numbered(30)), 0)
    assert first == tokens(train_rows(numbered(30), batch_size=2), 0)
    assert first != tokens(train_rows(numbered(30)), 1)
    assert first != tokens(train_rows(numbered(30), seed=1), 0)


@dataclasses.dataclass(frozen=True)
class Striped:
    """One picture of vertical stripes, so that crops can be told apart."""

    data: bytes
    captions: tuple = ("a",)
    probs: tuple | None = None
    name = "striped"

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Sample(
            image=self.data, captions=self.captions, key="s/0", shard="s", caption_probs=self.probs
        )


@pytest.fixture
def stripes():

    pixels = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 1, 3))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_crops_of_a_sample_differ_between_epochs_and_repeat_with_the_seed(train_rows, stripes):
    crop = AugmentConfig(crop_scale=(0.1, 0.5))
    rows, again = (train_rows(Striped(stripes), augment=crop) for _ in range(2))
    images = [rows[epoch]["image"].tobytes() for epoch in range(20)]
    assert len(set(images)) > 15
    assert images == [again[epoch]["image"].tobytes() for epoch in range(20)]


def test_captions_are_drawn_with_their_probabilities(train_rows, stripes):
    rows = train_rows(Striped(stripes, ("a", "b", "c"), (0.1, 0.9, 0.0)))
    drawn = [chr(rows[epoch]["tokens"][0]) for epoch in range(400)]
    assert 20 <= drawn.count("a") <= 65 and drawn.count("c") == 0
    even = train_rows(Striped(stripes, ("a", "b", "c")))
    assert {chr(even[epoch]["tokens"][0]) for epoch in range(60)} == set("abc")


def test_a_bad_sample_is_replaced_by_the_same_other_one_each_time(train_rows, numbered, ids):
    bad = frozenset(range(0, 30, 7))
    clean, one, other = (
        train_rows(numbered(30)),
        train_rows(numbered(30, bad)),
        train_rows(numbered(30, bad), batch_size=2),
    )
    for place in range(60):
        row = one[place]
        number = ids({"image": row["image"][None]})[0]
        expected = ids({"image": clean[place]["image"][None]})[0]
        assert number == ids({"image": other[place]["image"][None]})[0] and number not in bad
        if expected in bad:
            assert row["bad"][0].key == f"n/{expected}" and row["bad"][0].reason == "out-of-sorts"
        else:
            assert number == expected and row["bad"] == []


def test_substitutes_of_different_places_differ(train_rows, numbered, ids):
    rows = train_rows(numbered(100, frozenset(range(50))))
    replaced = [rows[place] for place in range(300) if rows[place]["bad"]]
    assert len({ids({"image": row["image"][None]})[0] for row in replaced}) > 30


def test_the_same_sample_number_of_two_sources_is_augmented_differently(train_rows, stripes):
    crop = AugmentConfig(crop_scale=(0.1, 0.5))
    rows = train_rows(Striped(stripes), Striped(stripes), weights=(1.0, 1.0), augment=crop)
    first, second = (
        [rows[2 * epoch + n]["image"].tobytes() for epoch in range(20)] for n in (0, 1)
    )
    assert sum(a != b for a, b in zip(first, second)) > 15


def test_substitutes_come_from_the_same_source(train_rows, numbered):
    rows = train_rows(numbered(20, frozenset(range(10))), numbered(20, tag=9), weights=(1.0, 1.0))
    tags = [int(rows[place]["image"][0, 0, 2]) for place in range(80)]
    assert tags == [0, 9] * 40


def test_an_undecodable_image_names_its_reason_and_sample(train_rows, stripes, numbered):
    class Mixed(numbered):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return dataclasses.replace(sample, image=b"<html>") if index == 3 else sample

    rows = train_rows(Mixed(10))
    bad = [error for place in range(10) for error in rows[place]["bad"]]
    assert {(error.reason, error.key) for error in bad} == {("html-instead-of-image", "n/3")}


def test_a_source_with_nothing_usable_stops_with_names(train_rows, numbered):
    rows = train_rows(numbered(5, frozenset(range(5))))
    with pytest.raises(
        ValueError, match=rf"numbered: {MAX_TRIES} samples in a row.*n/\d: out-of-so"
    ):
        rows[0]


def test_evaluation_takes_samples_at_even_distances(letters, settings, numbered, ids):
    rows = EvalDataset(
        numbered(100),
        letters,
        settings(),
        batch_size=5,
        image_size=8,
        preprocess=PreprocessConfig(),
        max_samples=10,
        process_index=0,
        process_count=1,
    )
    assert rows.batches == 2
    assert ids(batch_of(rows, 0)) + ids(batch_of(rows, 1)) == list(range(0, 100, 10))


class Few(Tokenizer):
    """Has bytes below that of z."""

    kind, vocab_size, end_id, context_length = "few", ord("z"), 0, 6

    def encode(self, texts):
        return [list(text.encode()) for text in texts]


def test_a_caption_whose_ids_no_model_has_is_a_bad_sample(train_rows, settings, numbered):
    class Mixed(numbered):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return dataclasses.replace(sample, captions=("zzz",)) if index == 3 else sample

    rows = train_rows(Mixed(10), tokenizer=Few())
    bad = [error for place in range(10) for error in rows[place]["bad"]]
    assert {(error.reason, error.key) for error in bad} == {("token-outside-vocabulary", "n/3")}
    more = {"batch_size": 5, "image_size": 8, "preprocess": PreprocessConfig()}
    more |= {"max_samples": None, "process_index": 0, "process_count": 1}
    test_rows = EvalDataset(Mixed(10), Few(), settings(), **more)
    assert [bool(test_rows[place]["mask"]) for place in range(5)] == [True] * 3 + [False, True]
    assert [error.key for error in test_rows[3]["bad"]] == ["n/3"]

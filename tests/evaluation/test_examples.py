"""Which retrievals are shown, and what is marked right."""

import base64
import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from clip_jax.evaluation.annotations import read_annotations
from clip_jax.evaluation.examples import CLOSE_UP, FOUND, QUERIES, choose_examples
from clip_jax.runs.results import Examples


@pytest.fixture
def pairs(source):
    """Embeddings under which every image and its first caption are one vector."""
    annotations = read_annotations(source, range(len(source)))
    owner = [n for n, a in enumerate(annotations) for _ in a.captions]
    captions = [caption for a in annotations for caption in a.captions]
    z_image_NE = np.eye(len(source), dtype=np.float32)
    return z_image_NE, z_image_NE[owner], np.array(owner), captions, annotations


def test_a_perfect_model_has_its_first_answers_marked_right(pairs, source):
    examples = choose_examples(*pairs, source, 10_000)
    assert len(examples.caption_queries) == len(examples.image_queries) == QUERIES
    for query in examples.caption_queries:
        assert query.found[0].right
        assert [found.score for found in query.found] == [1, 0, 0, 0, 0]
    assert all(query.found[0].right for query in examples.image_queries)
    np.testing.assert_array_equal(examples.close_up.cosines, np.eye(CLOSE_UP))


def test_another_image_with_the_same_caption_is_marked_right(source):
    annotations = read_annotations(source, [1, 7, 13, 2])
    captions = ["a green square"] * 3 + [annotations[3].captions[0]]
    z_image_NE = np.eye(4, dtype=np.float32)
    examples = choose_examples(
        z_image_NE, z_image_NE, np.arange(4), captions, annotations, source, 10_000
    )
    rights = {q.caption: [found.right for found in q.found] for q in examples.caption_queries}
    rights |= {q.found[0].caption: [] for q in examples.image_queries}
    assert rights.keys() == set(captions)
    assert sum(rights["a green square"]) in (0, 3)


def test_captions_found_are_distinct(pairs, source):
    for query in choose_examples(*pairs, source, 10_000).image_queries:
        texts = [found.caption for found in query.found]
        assert len(set(texts)) == len(texts) == FOUND


def test_groups_are_drawn_in_turn(pairs, source):
    examples = choose_examples(*pairs, source, 10_000)
    groups = [query.group for query in (*examples.caption_queries, *examples.image_queries)]
    assert groups == ["held_out", "seen"] * QUERIES


def test_the_same_examples_are_drawn_each_time(pairs, source):
    assert choose_examples(*pairs, source, 10_000) == choose_examples(*pairs, source, 10_000)


def test_every_image_shown_has_a_small_picture(pairs, source):
    examples = choose_examples(*pairs, source, 10_000)
    shown = {found.image for query in examples.caption_queries for found in query.found}
    assert shown | set(examples.close_up.images) <= examples.pictures.keys()
    kind, content = examples.pictures[examples.close_up.images[0]].split(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (16, 16)


def test_an_image_that_is_too_large_or_gone_has_no_picture(pairs, source, memory_source):
    assert choose_examples(*pairs, source, 100).pictures == {}
    gone = memory_source(len(source), bad=range(len(source)))
    assert choose_examples(*pairs, gone, 10_000).pictures == {}


def test_a_single_pair_is_enough(source):
    annotations = read_annotations(source, [0])
    z_1E = np.ones((1, 1), np.float32)
    texts = list(annotations[0].captions)
    examples = choose_examples(z_1E, z_1E, np.array([0]), texts, annotations, source, 10_000)
    assert examples.caption_queries[0].caption == examples.image_queries[0].found[0].caption


def test_examples_survive_json(pairs, source):
    examples = choose_examples(*pairs, source, 10_000)
    assert Examples.from_json(json.loads(json.dumps(dataclasses.asdict(examples)))) == examples

"""Scores and concepts: what is kept, and that it hangs on data and settings alone."""

import numpy as np
import pytest

from clip_jax.curation.concepts import Entries, balance, hash_keys
from clip_jax.curation.filter import FilterConfig, by_score, decide
from clip_jax.curation.report import borders
from clip_jax.curation.vectors import ArrayRows


class InMemory:
    """A collection of arrays."""

    def __init__(self, image=None, text=None, captions=(), keys=()):
        self.image = None if image is None else ArrayRows(image)
        self.text = None if text is None else ArrayRows(text)
        self._captions, self._keys = captions, keys
        self._rows = len(captions) if image is None else len(image)

    def __len__(self):
        return self._rows

    def key_hashes(self):
        return hash_keys(self._keys)

    def captions(self, rows_N):
        return [self._captions[row] for row in rows_N]


def test_a_threshold_keeps_pairs_from_it_on(vectors, near, mesh):
    cosine_N = np.linspace(0.1, 0.5, 40)
    image = vectors(40)
    text = near(image, cosine_N, np.random.default_rng(0))
    found = decide(InMemory(image, text), FilterConfig(score_above=0.3), mesh(1))
    np.testing.assert_array_equal(found.kept(), np.flatnonzero(cosine_N >= 0.3))
    np.testing.assert_allclose(found.score_N, cosine_N, atol=1e-6)
    dropped, kept = borders(found.decisions[0], 3)
    assert dropped.tolist() == [19, 18, 17] and kept.tolist() == [20, 21, 22]


def test_a_score_at_the_threshold_is_kept():
    score_N = np.array([0.3, 0.25, np.nextafter(0.3, 0)])
    found = by_score(score_N, np.arange(3), FilterConfig(score_above=0.3))
    assert found.dropped_N.tolist() == [1, 2]


def test_a_share_is_of_the_rows_that_are_left():
    score_N = np.array([0.3, 0.5, 0.3, 0.1, 0.3])
    found = by_score(score_N, np.array([1, 3]), FilterConfig(score_share=0.5))
    assert found.dropped_N.tolist() == [3]


def test_a_share_is_kept_whatever_the_scores_are():
    score_N = np.array([0.3, 0.5, 0.3, 0.1, 0.3])
    found = by_score(score_N, np.arange(5), FilterConfig(score_share=0.6))
    assert found.dropped_N.tolist() == [3, 4]  # of equal scores the first are kept
    assert by_score(
        score_N, np.array([1, 3]), FilterConfig(score_share=0.01)
    ).dropped_N.tolist() == [3]


def test_rules_follow_one_another(vectors, near, mesh):
    """A duplicate of a pair that the score dropped is no duplicate; the best of two is kept if asked."""
    rng = np.random.default_rng(0)
    image = vectors(6)
    image[3:] = near(image[:3], 0.98, rng)
    text = near(image, [0.1, 0.5, 0.5, 0.5, 0.6, 0.4], rng)
    pairs = InMemory(image, text)
    kept = {
        keep: decide(pairs, FilterConfig(score_above=0.3, duplicates_above=0.95, duplicates_keep=keep, pixels_above=None), mesh(1))
        for keep in ("first", "best")
    }  # fmt: skip
    assert kept["first"].kept().tolist() == [1, 2, 3]
    assert kept["best"].kept().tolist() == [2, 3, 4]
    assert [len(one.dropped_N) for one in kept["best"].decisions] == [1, 2]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A Red bicycle, leaning", ["red bicycle", "bicycle"]),
        ("red  bicycles", []),
        ("a t-shirt", ["shirt", "t-shirt"]),
        ("nothing", []),
        ("STRASSE", ["straße"]),
        ("bicycle red bicycle", ["red bicycle", "bicycle"]),
    ],
)
def test_an_entry_is_found_by_its_words(caption, found):
    entries = Entries(["red bicycle", "bicycle", "shirt", "t-shirt", "straße"])
    assert [entries.names[number] for number in entries.match(caption)] == found


def test_entries_that_differ_in_case_are_one():
    assert Entries(["Cat", "cat", " CAT"]).names == ["Cat"]
    for wrong, said in ((["cat", " "], "without words"), ([], "no entries")):
        with pytest.raises(ValueError, match=said):
            Entries(wrong)


@pytest.fixture(scope="module")
def captions():
    """2,000 dogs, 40 of them with a rare hat, 100 cats, and 50 of nothing that is listed."""
    dogs = [f"a dog {n}" + (" in a fez" if n < 40 else "") for n in range(2000)]
    return dogs + ["one cat"] * 100 + ["a thing"] * 50


def test_frequent_concepts_are_capped_and_rare_ones_are_kept(captions, mesh, tmp_path):
    keys = [f"k{n}" for n in range(len(captions))]
    entries, cfg = Entries(["dog", "fez", "cat"]), FilterConfig(concepts="x", concept_limit=200)
    pairs = InMemory(captions=captions, keys=keys)
    found = decide(pairs, cfg, mesh(1), entries=entries)
    kept = found.kept()
    assert set(range(40)) <= set(kept.tolist())  # each has a rare entry
    assert set(range(2000, 2100)) <= set(kept.tolist())
    assert kept.max() < 2100  # captions without an entry are dropped
    dogs = ((kept >= 40) & (kept < 2000)).sum()
    mean, deviation = 1960 * 0.1, np.sqrt(1960 * 0.1 * 0.9)
    assert abs(dogs - mean) < 5 * deviation
    balanced = found.decisions[0].balance
    assert balanced.count_S.tolist() == [2000, 40, 100]
    assert balanced.kept_S.tolist() == [dogs + 40, 40, 100]


def test_a_draw_hangs_on_seed_key_and_entry_and_not_on_the_order(captions):
    keys, order_N = np.arange(len(captions)), np.random.default_rng(0).permutation(len(captions))

    def kept(order_N, names=("dog", "fez", "cat"), seed=0) -> set[int]:
        entries = Entries(names)
        matches = entries.match_all([captions[n] for n in order_N], range(len(order_N)))
        hashes = hash_keys(str(keys[n]) for n in order_N)
        keeps_N = balance(matches, entries, hashes, limit=200, seed=seed).keeps_N
        return set(order_N[np.flatnonzero(keeps_N)].tolist())

    first = kept(keys)
    assert kept(order_N) == first and kept(keys, ("cat", "dog", "fez")) == first
    assert kept(keys, seed=1) != first


def test_rules_need_what_they_compare(vectors, mesh):
    images = InMemory(vectors(4))
    with pytest.raises(ValueError, match="the rule score needs embeddings of images and texts"):
        decide(images, FilterConfig(score_above=0.1), mesh(1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score_above": 0.1, "score_share": 0.5}, "excludes score_above"),
        ({"score_above": 0.1, "duplicates_keep": "best"}, "duplicates_above is None"),
        ({"score_above": 0.1, "against_above": 0.8}, "against names no evaluation set"),
    ],
)
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        FilterConfig(**settings)


def test_a_filter_without_rules_is_refused(vectors, mesh):
    with pytest.raises(ValueError, match="no rule is set"):
        decide(InMemory(vectors(4)), FilterConfig(), mesh(1))

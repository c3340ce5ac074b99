"""The files of a filter are what it decided, and a source is read by them."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from clip_jax.collection.embeddings import open_embeddings
from clip_jax.config import DataConfig
from clip_jax.curation.collection import EmbeddedSource, EvaluationSet
from clip_jax.curation.concepts import Entries
from clip_jax.curation.filter import FilterConfig, decide
from clip_jax.curation.on_beam import decide_on_beam
from clip_jax.curation.write import refuse_full, write_outcome
from clip_jax.data.subset_file import write_subset

CFG = FilterConfig(
    score_above=0.25,
    against=("test",),
    against_above=0.9,
    duplicates_above=0.9,
    duplicates_keep="best",
    concepts="list",
    concept_limit=40,
    pixels_above=None,  # pixels have tests of their own
)
ENTRIES = Entries(["dog", "fez"])


@pytest.fixture
def planted(vectors, near, pictures, write_embeddings, tmp_path):
    """200 pictures, of which three cannot be read, with 20 of each kind of fault, and a test set."""
    rng = np.random.default_rng(0)
    source = pictures(200)
    samples = np.setdiff1d(np.arange(200), [3, 77, 150])
    image, test = vectors(197, 64), vectors(50, 64, seed=1)
    image[20:40] = near(image[:20], rng.uniform(0.92, 0.99, 20), rng)
    image[40:60] = near(test[:20], rng.uniform(0.92, 0.99, 20), rng)
    text = near(image, 0.5, rng)
    text[60:80] = near(image[60:80], 0.1, rng)
    write_embeddings(tmp_path / "embeddings", source, samples, image=image, text=text)
    write_embeddings(tmp_path / "test", pictures(50), np.arange(50), image=test)
    collection = EmbeddedSource(open_embeddings(tmp_path / "embeddings"), source)
    return collection, [EvaluationSet(str(tmp_path / "test"), collection.model)]


@pytest.fixture
def outcome(planted, mesh):
    collection, sets = planted
    evaluation = {one.name: one.rows for one in sets}
    return decide(collection, CFG, mesh(2), evaluation=evaluation, entries=ENTRIES)


def test_each_rule_finds_what_was_planted_for_it(outcome):
    score, evaluation, duplicates, concepts = outcome.decisions
    assert score.dropped_N.tolist() == list(range(60, 80))
    assert evaluation.dropped_N.tolist() == list(range(40, 60))
    assert len(duplicates.dropped_N) == 20  # one of each two, that with the lower score
    pairs = sorted(zip(duplicates.dropped_N.tolist(), duplicates.partner_N[duplicates.dropped_N]))
    assert all(abs(one - other) == 20 for one, other in pairs)
    assert all(outcome.score_N[one] <= outcome.score_N[other] for one, other in pairs)
    assert 0 < len(concepts.dropped_N) < concepts.seen


def test_a_source_is_read_by_what_is_kept(planted, outcome, tmp_path, pictures):
    collection, sets = planted
    more = {"data": DataConfig(), "sets": sets, "entries": ENTRIES}
    counts = write_outcome(collection, outcome, str(tmp_path / "out"), CFG, **more)
    part = pictures(200, subset=(str(tmp_path / "out" / "kept.safetensors"),))
    kept = outcome.kept()
    assert [sample.key for sample in part] == collection.keys(kept)
    assert counts["kept"] == len(kept) and len(part) == len(kept)
    dropped = [
        pictures(200, subset=(str(path),))
        for path in (tmp_path / "out").glob("dropped_*.safetensors")
    ]
    assert len(dropped) == 4 and sum(map(len, dropped)) + len(kept) == 197
    table = pq.read_table(tmp_path / "out" / "decisions.parquet").to_pylist()
    by_rule = [row["sample"] for row in table if row["dropped_by"] == "evaluation"]
    assert by_rule == collection.sample_N[40:60].tolist()
    assert [row["partner"] for row in table if row["dropped_by"] == "evaluation"] == list(range(20))
    with pytest.raises(ValueError, match="holds the files of a filter"):
        refuse_full(str(tmp_path / "out"))


def test_the_report_shows_both_sides_of_each_border(planted, outcome, tmp_path):
    collection, sets = planted
    cfg = replace(CFG, examples=2)
    more = {"data": DataConfig(), "sets": sets, "entries": ENTRIES, "facts": {"made": "<b>"}}
    write_outcome(collection, outcome, str(tmp_path / "out"), cfg, **more)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "3 could not be read" in page and "&lt;b&gt;" in page
    assert page.count("Kept, nearest to the border") == 4
    for decision in outcome.decisions[:3]:
        near = decision.value_N[decision.dropped_N]
        border = near.max() if decision.rule == "score" else near.min()
        assert f">{border:.4f}<" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # it needs nothing from elsewhere


def test_a_filter_of_a_subset_is_a_subset_of_the_whole(
    vectors, near, pictures, write_embeddings, tmp_path, mesh
):
    whole, path = pictures(60), str(tmp_path / "first.safetensors")
    about = {"source": whole.name, "fingerprint": whole.fingerprint, "samples": 60}
    write_subset(path, np.arange(10, 60), **about)
    part = pictures(60, subset=(path,))
    image = vectors(50)
    text = near(image, np.where(np.arange(50) < 5, 0.1, 0.5), np.random.default_rng(0))
    write_embeddings(tmp_path / "embeddings", part, np.arange(50), image=image, text=text)
    collection = EmbeddedSource(open_embeddings(tmp_path / "embeddings"), part)
    cfg = FilterConfig(score_above=0.3)
    write_outcome(
        collection, decide(collection, cfg, mesh(1)), str(tmp_path / "out"), cfg, data=DataConfig()
    )
    kept = pictures(60, subset=(str(tmp_path / "out" / "kept.safetensors"),))
    assert [sample.key for sample in kept] == [f"p/{n}" for n in range(15, 60)]


def test_beam_decides_the_same(planted, outcome, tmp_path):
    collection, sets = planted
    options = ["--runner=DirectRunner"]
    found = decide_on_beam(
        collection, CFG, sets, ENTRIES, str(tmp_path / "beam"), block=70, options=options
    )
    for one, other in zip(outcome.decisions, found.decisions, strict=True):
        np.testing.assert_array_equal(one.dropped_N, other.dropped_N)
        if one.partner_N is not None:
            np.testing.assert_array_equal(
                one.partner_N[one.dropped_N], other.partner_N[one.dropped_N]
            )
        np.testing.assert_allclose(
            one.value_N[one.dropped_N], other.value_N[one.dropped_N], atol=1e-12
        )


def test_embeddings_of_another_source_or_model_are_refused(planted, pictures, tmp_path):
    collection, _ = planted
    with pytest.raises(ValueError, match=r"200 samples.* has 190 samples and another fingerprint"):
        EmbeddedSource(collection.embeddings, pictures(190))
    with pytest.raises(ValueError, match="not embedded with the model of the collection"):
        EvaluationSet(str(tmp_path / "test"), "other")
    (tmp_path / "embeddings" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="does not say which sample a row is of"):
        EmbeddedSource(open_embeddings(tmp_path / "embeddings"), collection.source)


def test_a_filter_that_keeps_nothing_is_refused(planted, mesh, tmp_path):
    collection, _ = planted
    cfg = FilterConfig(score_above=0.99)
    with pytest.raises(ValueError, match=r"no sample is kept \(197 by score\)"):
        write_outcome(
            collection,
            decide(collection, cfg, mesh(1)),
            str(tmp_path / "out"),
            cfg,
            data=DataConfig(),
        )

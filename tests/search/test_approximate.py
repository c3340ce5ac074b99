"""An index of each approximate kind finds what it says, and is refused where it is not what was written."""

import json
import logging
import shutil
import sys
import types

import ml_dtypes
import numpy as np
import pytest

import clip_jax.search
from clip_jax.cli.environment import explain
from clip_jax.collection.embeddings import open_embeddings
from clip_jax.search import approximate
from clip_jax.search.approximate import KINDS, ApproximateSearch, Codes, Graph
from clip_jax.search.exact import Found
from clip_jax.search.index import build_index

KIND_NAMES = tuple(KINDS)


@pytest.fixture(scope="module")
def indexes(embeddings, tmp_path_factory):
    """The folder of an index of each method."""
    folder = tmp_path_factory.mktemp("indexes")
    for method in ("exact", *KIND_NAMES):
        build_index(embeddings, folder / method, method=method)
    return folder


def shares(one: Found, other: Found) -> float:
    """The share of the rows that both found."""
    pairs = zip(one.row_QK.tolist(), other.row_QK.tolist())
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs]))


@pytest.mark.parametrize("method", KIND_NAMES)
def test_recall_is_measured_and_is_what_a_user_finds(method, indexes, vectors_of):
    info = json.loads((indexes / method / "index.json").read_text())
    assert info["recall_reached"] and min(info["recall_at_10"].values()) >= 0.98
    assert (info["method"], info["candidates"]) == (method, KINDS[method].efforts[0])
    z_QE = vectors_of(3, 100, 32)
    exact = clip_jax.search.open(indexes / "exact").search(z_QE, 10)
    index = clip_jax.search.open(indexes / method)
    found = index.search(z_QE, 10)
    assert shares(exact, found) > 0.9 and index.measure(z_QE) > 0.95
    same_QK = exact.row_QK == found.row_QK
    np.testing.assert_allclose(exact.score_QK[same_QK], found.score_QK[same_QK], rtol=1e-5)


@pytest.mark.parametrize("method", KIND_NAMES)
def test_more_results_than_candidates_are_given(method, indexes, vectors_of):
    index = clip_jax.search.open(indexes / method)
    exact = clip_jax.search.open(indexes / "exact")
    z_QE = vectors_of(4, 5, 32)
    assert shares(index.search(z_QE, 400), exact.search(z_QE, 400)) > 0.9
    found = index.search(z_QE, 1300)
    assert found.row_QK.shape == (5, 1300) and (found.row_QK[:, 1200:] == -1).all()
    assert np.isneginf(found.score_QK[:, 1200:]).all()
    if method == "approximate":  # a graph may not reach all rows
        assert (np.sort(found.row_QK[:, :1200]) == np.arange(1200)).all()


@pytest.mark.parametrize("method", KIND_NAMES)
def test_a_recall_that_is_not_reached_is_said(method, embeddings, tmp_path, monkeypatch, caplog):
    weak = {"approximate": Codes(numbers=32), "graph": Graph(connectivity=2, expansion_add=1)}
    kind = KINDS[method]
    changed = kind.__class__(**{**vars(kind), "efforts": (1,), "settings": (weak[method],)})
    monkeypatch.setitem(KINDS, method, changed)
    with caplog.at_level(logging.WARNING):
        info = build_index(embeddings, tmp_path, method=method, target=0.9999)
    assert not info["recall_reached"] and "recall@10 does not reach" in caplog.text
    assert kind.mend in caplog.text


def test_finer_codes_are_built_where_coarse_ones_do_not_suffice(embeddings, tmp_path, monkeypatch):
    kind = KINDS["approximate"]
    coarse_first = {"efforts": (1, 2, 4, 8), "settings": (Codes(numbers=32), Codes(numbers=1))}
    monkeypatch.setitem(KINDS, "approximate", kind.__class__(**{**vars(kind), **coarse_first}))
    said = []
    info = build_index(embeddings, tmp_path, method="approximate", report=said.append)
    assert info["codes"] == {"numbers": 1} and info["recall_reached"]
    assert "0.98 is not reached with 8 candidates: building a finer one" in said


def test_candidates_are_raised_until_every_kind_of_query_reaches_the_target():
    def found(z_QE, k, *, right):
        score_QK = np.ones((len(z_QE), k), np.float32)
        score_QK[:, right:] = 0.5
        return Found(score_QK, np.zeros((len(z_QE), k), np.int64))

    def search(z_QE, k):  # the captions, which are zeros, need more candidates
        return found(z_QE, k, right=k if z_QE.any() or tried.effort >= 4 else 9)

    tried = types.SimpleNamespace(effort=0, search=search)
    queries = {"image": np.ones((3, 8)), "text": np.zeros((3, 8))}
    exact = {name: np.ones((3, 10), np.float32) for name in queries}
    tune = approximate.tune
    found_ = tune(tried, queries, exact, target=0.98, efforts=(1, 2, 4, 8))
    assert found_ == (4, {"image": 1, "text": 1}, True)
    assert tune(tried, queries, exact, target=0.9, efforts=(1, 2)).effort == 1
    assert tune(tried, queries, exact, target=0.98, efforts=(1, 2)).reached is False


def test_recall_counts_what_is_missing():
    exact_QK = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, -np.inf]], np.float32)
    rows = np.zeros((2, 3), np.int64)
    score_QK = np.array([[0.9, 0.7, 0.6], [0.9, 0.8, 0.1]], np.float32)
    assert approximate.recall(clip_jax.search.Found(score_QK, rows), exact_QK) == (2 / 3 + 1) / 2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dim", [30, 7, 1])
def test_widths_that_no_code_divides(dim, dtype, write_embeddings, vectors_of, tmp_path):
    folder = write_embeddings(tmp_path / "e", vectors_of(0, 1100, dim), dtype=dtype)
    build_index(folder, tmp_path / "i", method="approximate")
    z_QE, index = vectors_of(1, 20, dim), clip_jax.search.open(tmp_path / "i")
    assert index.info["method"] == "approximate" and index.measure(z_QE) > 0.95
    found, x_NE = index.search(z_QE, 10), index.vectors.take(np.arange(1100))
    expected_QK = np.take_along_axis(z_QE @ x_NE.T, found.row_QK, 1)
    np.testing.assert_allclose(found.score_QK, expected_QK, atol=1e-6)


def test_equal_rows_are_in_the_order_of_their_numbers(write_embeddings, vectors_of, tmp_path):
    x_NE = np.repeat(vectors_of(0, 300, 16), 5, axis=0)
    build_index(write_embeddings(tmp_path / "e", x_NE), tmp_path / "i", method="approximate")
    found = clip_jax.search.open(tmp_path / "i").search(x_NE[50], 5)
    assert found.row_QK.tolist() == [50, 51, 52, 53, 54]
    same = write_embeddings(tmp_path / "same", np.repeat(x_NE[:1], 1100, axis=0))
    info = build_index(same, tmp_path / "j", method="approximate")
    assert info["recall_at_10"] == {"image": 1.0}
    assert len(set(clip_jax.search.open(tmp_path / "j").search(x_NE[0], 9).row_QK.tolist())) == 9


def test_few_rows_are_searched_exactly_and_it_is_said(write_embeddings, vectors_of, tmp_path):
    x_NE, said = vectors_of(0, 999, 16), []
    folder = write_embeddings(tmp_path / "e", x_NE)
    info = build_index(folder, tmp_path / "i", method="approximate", report=said.append)
    assert said == ["999 rows are too few for codes: the index is exact"]
    assert info["method"] == "exact" and not (tmp_path / "i/vectors.faiss").exists()
    assert clip_jax.search.open(tmp_path / "i").search(x_NE[3], 1).row_QK.tolist() == [3]


@pytest.mark.parametrize("method", KIND_NAMES)
def test_wrong_captions_vectors_are_not_taken_as_queries(
    method, write_embeddings, vectors_of, tmp_path
):
    x_NE = vectors_of(0, 1200, 16)
    folder = write_embeddings(tmp_path / "e", x_NE)
    (folder / "text_emb").mkdir()
    x_NE[::2], x_NE[1::4] = np.nan, 0
    np.save(folder / "text_emb/text_emb_0.npy", x_NE)
    info = build_index(folder, tmp_path / "i", method=method, kind="image")
    assert info["recall_reached"] and set(info["recall_at_10"]) == {"image", "text"}


def test_the_same_command_writes_the_same_codes(embeddings, indexes, tmp_path):
    build_index(embeddings, tmp_path, method="approximate")
    for name in ("vectors.faiss", "metadata.arrow"):
        assert (tmp_path / name).read_bytes() == (indexes / "approximate" / name).read_bytes()


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
@pytest.mark.parametrize("method", KIND_NAMES)
def test_a_damaged_file_is_refused(method, damage, embeddings, indexes, tmp_path):
    shutil.copytree(indexes / method, tmp_path / "i")
    info = json.loads((tmp_path / "i/index.json").read_text())
    info["embeddings"] = str(embeddings)
    (tmp_path / "i/index.json").write_text(json.dumps(info))
    clip_jax.search.open(tmp_path / "i")
    damage(tmp_path / "i" / KINDS[method].file)
    with pytest.raises(ValueError, match="has other bytes than were written"):
        clip_jax.search.open(tmp_path / "i")


@pytest.mark.parametrize("method", KIND_NAMES)
def test_a_file_of_other_vectors_or_programs_is_refused(
    method, indexes, embeddings, write_embeddings, tmp_path, vectors_of
):
    """Also where nobody has noted its checksum."""
    module, path = approximate.load(method), indexes / method / KINDS[method].file
    module.open_file(path, 1200, 32)
    for rows, dim in ((1199, 32), (1200, 31 if method == "graph" else 28), (1200, 33)):
        with pytest.raises(ValueError, match="of these embeddings"):
            module.open_file(path, rows, dim)
    for content in (
        b"",
        b"hello, I am no index" * 99,
        path.read_bytes()[: path.stat().st_size // 2],
    ):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ValueError, match="build the index again"):
            module.open_file(tmp_path / "other", 1200, 32)


def test_an_index_of_another_faiss_type_is_refused(tmp_path, vectors_of):
    import faiss

    index = faiss.IndexFlatIP(32)
    index.add(vectors_of(0, 1200, 32))
    faiss.write_index(index, str(tmp_path / "flat"))
    with pytest.raises(ValueError, match="has not the codes of these embeddings"):
        approximate.load("approximate").open_file(tmp_path / "flat", 1200, 32)


def test_a_graph_of_an_older_version_opens(embeddings, indexes, tmp_path, vectors_of):
    """As it was noted before there were codes."""
    shutil.copytree(indexes / "graph", tmp_path / "i")
    info = json.loads((tmp_path / "i/index.json").read_text())
    info |= {"method": "approximate", "expansion_search": info.pop("candidates")}
    info["embeddings"] = str(embeddings)
    del info["checksum"]
    (tmp_path / "i/index.json").write_text(json.dumps(info))
    z_QE = vectors_of(3, 10, 32)
    old, new = clip_jax.search.open(tmp_path / "i"), clip_jax.search.open(indexes / "graph")
    np.testing.assert_array_equal(old.search(z_QE, 10).row_QK, new.search(z_QE, 10).row_QK)


@pytest.mark.parametrize("method, name", [("approximate", "faiss"), ("graph", "usearch.index")])
def test_a_library_that_is_missing_is_named_and_an_older_index_stays(
    method, name, embeddings, tmp_path, monkeypatch
):
    build_index(embeddings, tmp_path, method="exact")
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, KINDS[method].module)
    with pytest.raises(ModuleNotFoundError) as raised:
        build_index(embeddings, tmp_path, method=method)
    raised.value.name = name.partition(".")[0]  # as it is where the package is not there at all
    assert "pip install -e '.[search]'" in explain(raised.value)
    assert clip_jax.search.open(tmp_path).info["method"] == "exact"


def test_another_method_leaves_no_file_of_the_former(embeddings, tmp_path):
    for method in ("graph", "approximate", "exact"):
        build_index(embeddings, tmp_path, method=method)
        there = {kind.file for kind in KINDS.values() if (tmp_path / kind.file).exists()}
        assert there == ({KINDS[method].file} if method in KINDS else set())
        assert clip_jax.search.open(tmp_path).info["method"] == method


@pytest.mark.parametrize("dtype", ["float16", "float32", ml_dtypes.bfloat16])
def test_scores_are_those_of_the_rows(dtype, write_embeddings, vectors_of, tmp_path):
    vectors = open_embeddings(write_embeddings(tmp_path / "e", vectors_of(0, 900, 24)))
    vectors = vectors.vectors["image"]
    vectors._arrays = [part.astype(dtype) for part in vectors.parts]
    vectors.dtype = np.dtype(dtype)
    rows_QK = np.random.default_rng(0).integers(0, 900, (3, 700))
    rows_QK[:, 5] = rows_QK[:, 650]  # in another block
    z_QE = vectors_of(1, 3, 24)
    score_QK = vectors.scores(z_QE, rows_QK)
    x_QKE = vectors.take(rows_QK.ravel()).reshape(3, 700, 24)
    np.testing.assert_allclose(score_QK, (x_QKE * z_QE[:, None]).sum(axis=2), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(score_QK[:, 5], score_QK[:, 650])
    assert vectors.scores(z_QE[:0], rows_QK[:0]).shape == (0, 700)
    for wrong in (-1, 900):
        with pytest.raises(IndexError):
            vectors.scores(z_QE, np.full((3, 1), wrong))


@pytest.mark.parametrize("dim", [1, 7])
def test_all_rows_are_found_where_so_many_are_asked_for(
    dim, write_embeddings, vectors_of, tmp_path
):
    """faiss leaves out rows whose code has the lowest score that there can be: of width 1, half of them."""
    folder = write_embeddings(tmp_path / "e", vectors_of(0, 1500, dim), dtype="float32")
    build_index(folder, tmp_path / "i", method="approximate")
    index, z_QE = clip_jax.search.open(tmp_path / "i"), vectors_of(1, 9, dim)
    found = index.search(z_QE, 1500)
    assert (np.sort(found.row_QK) == np.arange(1500)).all()
    expected_QN = -np.sort(-(z_QE @ index.vectors.take(np.arange(1500)).T))
    np.testing.assert_allclose(found.score_QK, expected_QN, atol=1e-6)
    assert (index.search(z_QE, 1200).row_QK >= 0).all()


def test_a_candidate_that_was_not_found_is_no_result(embeddings):
    vectors = open_embeddings(embeddings).vectors["image"]
    given_QC = np.array([[-1, 5, -1, 9], [3, -1, -1, -1]])
    search = ApproximateSearch(lambda z_QE, k, effort: given_QC, vectors, effort=4)
    found = search.search(vectors.take(np.array([9, 0])), 3)
    assert found.row_QK.tolist() == [[9, 5, -1], [3, -1, -1]]
    assert np.isneginf(found.score_QK[0, 2]) and np.isneginf(found.score_QK[1, 1:]).all()


def test_a_search_asks_for_no_more_candidates_than_there_are_rows(embeddings):
    vectors, asked = open_embeddings(embeddings).vectors["image"], []

    def candidates(z_QE, k, effort):
        asked.append(k)
        return np.arange(k)[None]

    search = ApproximateSearch(candidates, vectors, effort=4)
    found = search.search(vectors.take(np.array([9])), 100_000)
    assert asked == [1200] and found.row_QK.shape == (1, 100_000)


def test_few_rows_are_in_memory_at_once(embeddings, vectors_of, monkeypatch):
    vectors, read = open_embeddings(embeddings).vectors["image"], []
    gather = vectors._gather
    monkeypatch.setattr(vectors, "_gather", lambda rows: read.append(len(rows)) or gather(rows))
    monkeypatch.setattr("clip_jax.collection.embeddings.GATHERED", 100)
    rows_QK = np.random.default_rng(0).integers(0, 1200, (10, 30))
    z_QE = vectors_of(1, 10, 32)
    score_QK = vectors.scores(z_QE, rows_QK)
    assert read == [90, 90, 90, 30]
    expected_QK = np.take_along_axis(z_QE @ vectors.take(np.arange(1200)).T, rows_QK, 1)
    np.testing.assert_allclose(score_QK, expected_QK, atol=1e-6)

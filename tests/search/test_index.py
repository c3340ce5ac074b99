"""An index finds what it says, is bound to its embeddings, and searches among the rows of a filter."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clip_jax.search
from clip_jax.search.approximate import Graph
from clip_jax.search.exact import Found
from clip_jax.search.index import build_index, write_table

METHODS = ("exact", "approximate", "graph")


@pytest.fixture(scope="module")
def indexes(embeddings, tmp_path_factory):
    """The folder of an index of each method."""
    folder = tmp_path_factory.mktemp("indexes")
    for method in METHODS:
        build_index(embeddings, folder / method, method=method)
    return folder


@pytest.fixture(params=METHODS)
def index(request, indexes):
    return clip_jax.search.open(indexes / request.param)


def test_one_vector_and_several_are_searched_alike(index, vectors_of):
    z_QE = vectors_of(4, 3, 32)
    together = index.search(10 * z_QE, 5)
    for number, z_E in enumerate(z_QE):
        alone = index.search(z_E, 5)
        assert alone.row_QK.shape == (5,)
        np.testing.assert_array_equal(alone.row_QK, together.row_QK[number])
    assert index.rows(together.row_QK[0])[0]["image_path"] == f"{together.row_QK[0, 0]}.jpg"


@pytest.mark.parametrize("on_host", [10_000, 0])
def test_a_filter_is_satisfied_by_all_and_loses_none(index, on_host, vectors_of, monkeypatch):
    monkeypatch.setattr(clip_jax.search.index, "ON_HOST", on_host)
    allowed_N = np.zeros(1200, bool)
    allowed_N[5::40] = True
    x_NE = index.vectors.take(np.arange(1200))
    z_QE = vectors_of(5, 4, 32)
    found = index.search(z_QE, 6, allowed_N=allowed_N)
    score_QN = np.where(allowed_N, z_QE @ x_NE.T, -np.inf)
    expected_QK = np.argsort(-score_QN, axis=1)[:, :6]
    if index.info["method"] == "exact" or on_host:
        np.testing.assert_array_equal(found.row_QK, expected_QK)
    assert allowed_N[found.row_QK].all()
    pairs = zip(found.row_QK.tolist(), expected_QK.tolist())
    assert np.mean([len(set(one) & set(other)) / 6 for one, other in pairs]) > 0.9
    few = index.search(z_QE[0], 6, allowed_N=np.arange(1200) == 3)
    assert few.row_QK.tolist() == [3, -1, -1, -1, -1, -1]


def test_a_filter_is_satisfied_for_each_of_several_queries(index, vectors_of, monkeypatch):
    """Also where one has enough rows among its first candidates, and another has none."""
    monkeypatch.setattr(clip_jax.search.index, "ON_HOST", 0)
    near_E = vectors_of(5, 1, 32)[0]
    score_N = index.vectors.take(np.arange(1200)) @ near_E
    nearest_N = np.argsort(-score_N)[:60]
    allowed_N = np.isin(np.arange(1200), nearest_N)
    found = index.search(np.stack([near_E, -near_E]), 5, allowed_N=allowed_N)
    assert allowed_N[found.row_QK].all()
    if index.info["method"] != "graph":  # which may not reach all rows
        assert found.row_QK[1].tolist() == nearest_N[::-1][:5].tolist()


def test_rows_that_a_search_does_not_reach_are_found_by_a_filter(index, vectors_of, monkeypatch):
    def nothing(z_QE, k):
        return Found(np.full((len(z_QE), k), -np.inf), np.full((len(z_QE), k), -1))

    monkeypatch.setattr(clip_jax.search.index, "ON_HOST", 0)
    monkeypatch.setattr(index, "_search", nothing)
    found = index.search(vectors_of(5, 1, 32)[0], 5, allowed_N=np.arange(1200) >= 1170)
    assert (found.row_QK >= 1170).all()


def test_wrong_vectors_are_refused(index):
    with pytest.raises(ValueError, match="32 numbers"):
        index.search(np.ones(31), 5)
    with pytest.raises(ValueError, match="not finite"):
        index.search(np.full(32, np.nan), 5)
    with pytest.raises(ValueError, match="k=0"):
        index.search(np.ones(32), 0)
    with pytest.raises(ValueError, match="is zero"):
        index.search(np.eye(3, 32, 1) * [[1], [0], [1]], 5)


def test_what_numpy_counts_with_is_a_k_and_no_query_has_no_result(index, vectors_of):
    z_QE = vectors_of(7, 2, 32)
    found = index.search(z_QE, np.int64(5))
    np.testing.assert_array_equal(found.row_QK, index.search(z_QE, 5).row_QK)
    assert [array.shape for array in index.search(z_QE[:0], 5)] == [(0, 5)] * 2


@pytest.mark.parametrize("allowed_N", [np.ones(1199, bool), np.arange(1200), np.array([3, 4])])
def test_what_is_no_mask_of_the_rows_is_refused(allowed_N, index):
    with pytest.raises(ValueError, match="allowed_N must be 1_200 truth values"):
        index.search(np.ones(32), 5, allowed_N=allowed_N)


def test_embeddings_alone_are_searched_exactly(embeddings, indexes, vectors_of):
    z_E = vectors_of(6, 1, 32)[0]
    expected = clip_jax.search.open(indexes / "exact").search(z_E, 5)
    np.testing.assert_array_equal(clip_jax.search.open(embeddings).search(z_E, 5), expected)


def test_a_column_named_score_or_row_is_not_taken_for_the_result(vectors_of, tmp_path):
    for name in ("img_emb", "metadata"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "img_emb/img_emb_0.npy", vectors_of(0, 9, 8))
    columns = {"score": [7.0] * 9, "row": ["x"] * 9, "caption": [str(n) for n in range(9)]}
    pq.write_table(pa.table(columns), tmp_path / "metadata/metadata_0.parquet")
    index = clip_jax.search.open(tmp_path)
    first = index.results(index.search(vectors_of(0, 9, 8)[4], 99))[0]
    assert (first["row"], first["caption"]) == (4, "4") and first["score"] == pytest.approx(1)


def test_changed_embeddings_are_refused(write_embeddings, vectors_of, tmp_path):
    x_NE = vectors_of(0, 60, 8)
    build_index(write_embeddings(tmp_path / "e", x_NE), tmp_path / "i")
    np.save(tmp_path / "e/img_emb/img_emb_0002.npy", x_NE[:20].astype(np.float32))
    with pytest.raises(ValueError, match="has changed since"):
        clip_jax.search.open(tmp_path / "i")


def test_an_index_is_not_taken_for_complete_while_it_is_built(embeddings, tmp_path, monkeypatch):
    build_index(embeddings, tmp_path / "i")
    monkeypatch.setattr("clip_jax.search.index.write_table", lambda *args: 1 / 0)
    for method in METHODS:
        with pytest.raises(ZeroDivisionError):
            build_index(embeddings, tmp_path / "i", method=method)
        with pytest.raises(ValueError, match="was not built to its end"):
            clip_jax.search.open(tmp_path / "i")


def test_vectors_without_unit_length_are_refused(write_embeddings, vectors_of, tmp_path):
    folder = write_embeddings(tmp_path / "e", 3 * vectors_of(0, 60, 8))
    with pytest.raises(ValueError, match="length 3"):
        build_index(folder, tmp_path / "i")


def test_scores_are_cosines_however_long_the_query_is(index, vectors_of):
    z_E = vectors_of(7, 1, 32)[0]
    plain = index.search(z_E, 5)
    for length in (40, 1e30, 1e-30):  # of which float32 has no squares
        found = index.search(length * z_E, 5)
        np.testing.assert_array_equal(found.row_QK, plain.row_QK)
        np.testing.assert_allclose(found.score_QK, plain.score_QK, rtol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, 0.0])
def test_one_wrong_vector_among_many_is_refused(wrong, write_embeddings, vectors_of, tmp_path):
    x_NE = vectors_of(0, 3000, 8)
    x_NE[1234] *= wrong
    folder = write_embeddings(tmp_path / "e", x_NE)
    for use in (lambda: build_index(folder, tmp_path / "i"), lambda: clip_jax.search.open(folder)):
        with pytest.raises(ValueError, match="row 1234 has the length"):
            use()


def test_vectors_of_another_model_with_the_same_sizes_are_refused(
    write_embeddings, vectors_of, tmp_path
):
    build_index(write_embeddings(tmp_path / "e", vectors_of(0, 60, 8)), tmp_path / "i")
    write_embeddings(tmp_path / "other", vectors_of(1, 60, 8))
    (tmp_path / "e").rename(tmp_path / "old")
    (tmp_path / "other").rename(tmp_path / "e")
    with pytest.raises(ValueError, match="has changed since"):
        clip_jax.search.open(tmp_path / "i")


def test_a_kind_that_is_not_there_is_refused(embeddings, tmp_path):
    with pytest.raises(ValueError, match="no text vectors"):
        build_index(embeddings, tmp_path / "i", kind="text")


@pytest.mark.parametrize(
    "name, content, named",
    [
        ("index.json", "{", r"index\.json is damaged"),
        ("index.json", "[]", r"index\.json is damaged"),
        ("index.json", '{"format": "clip_jax index 1"}', r"index\.json has no embeddings"),
        ("index.json", ("exact", "later"), "an unknown method, 'later'"),
        ("index.json", ("image", "sound"), "no sound vectors"),
        ("metadata.arrow", "hello" * 99, r"metadata\.arrow cannot be read"),
        ("metadata.arrow", "", r"metadata\.arrow cannot be read"),
        ("metadata.arrow", 59, r"metadata\.arrow has not 60 rows"),
    ],
)
def test_a_damaged_index_is_refused_by_name(
    name, content, named, write_embeddings, vectors_of, tmp_path
):
    build_index(write_embeddings(tmp_path / "e", vectors_of(0, 60, 8)), tmp_path / "i")
    path = tmp_path / "i" / name
    if isinstance(content, int):  # of another collection
        write_table(pa.table({"row": np.arange(content)}), path)
    else:
        text = content if isinstance(content, str) else path.read_text().replace(*content)
        path.write_text(text)
    with pytest.raises(ValueError, match=named):
        clip_jax.search.open(tmp_path / "i")


@pytest.mark.parametrize("recall", [-1, 2, float("nan")])
def test_a_recall_that_cannot_be_is_refused(recall, embeddings, tmp_path):
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        build_index(embeddings, tmp_path / "i", method="approximate", target=recall)
    for settings in ({"connectivity": 1}, {"expansion_add": -5}):
        with pytest.raises(ValueError, match="must be a whole number at least"):
            Graph(**settings)

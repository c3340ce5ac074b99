"""Embedded collections are read as they were written, by us or by clip-retrieval."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_jax.collection.embeddings import open_embeddings

EPS = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0.0}


@pytest.mark.parametrize("dtype", EPS)
def test_every_type_is_read_within_its_rounding(dtype, embedded_by, collection, tmp_path):
    embedded_by(tmp_path / "out", dtype=dtype)
    exact, found = open_embeddings(collection), open_embeddings(tmp_path / "out")
    rows = np.random.default_rng(0).permutation(41)
    for kind, vectors in found.vectors.items():
        assert str(vectors.dtype) == dtype
        expected_NE = exact.vectors[kind].take(rows)
        np.testing.assert_allclose(vectors.take(rows), expected_NE, rtol=EPS[dtype], atol=1e-7)


def test_chunks_are_all_rows_in_order(collection):
    vectors = open_embeddings(collection).vectors["image"]
    chunks = list(vectors.chunks(4))
    assert max(len(piece) for _, piece in chunks) == 4
    assert [first for first, _ in chunks] == list(
        np.cumsum([0, *(len(piece) for _, piece in chunks)])[:-1]
    )
    np.testing.assert_array_equal(
        np.concatenate([piece for _, piece in chunks]), vectors.take(np.arange(41))
    )


def test_rows_outside_are_refused(collection):
    vectors = open_embeddings(collection).vectors["image"]
    for row in (-1, 41):
        with pytest.raises(IndexError):
            vectors.take(np.array([row]))


def written_by_clip_retrieval(folder, rows=(7, 9, 8)):
    """Its layout: parts 0 to 10 and so on, without leading zeros here, as older versions have it."""
    rng, first = np.random.default_rng(0), 0
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, count in zip((0, 2, 10), rows):
        np.save(folder / f"img_emb/img_emb_{number}.npy", rng.normal(size=(count, 4)).astype("f2"))
        table = {"image_path": [f"{first + n:09}" for n in range(count)], "width": [3] * count}
        pq.write_table(pa.table(table), folder / f"metadata/metadata_{number}.parquet")
        first += count


def test_a_folder_of_clip_retrieval_is_read_in_the_order_of_its_numbers(tmp_path):
    written_by_clip_retrieval(tmp_path)
    found = open_embeddings(tmp_path)
    assert (found.rows, found.manifest, list(found.vectors)) == (24, None, ["image"])
    assert found.metadata["image_path"].to_pylist() == [f"{n:09}" for n in range(24)]
    assert [len(part) for part in found.vectors["image"].parts] == [7, 9, 8]


def test_what_does_not_fit_together_is_refused(tmp_path, collection):
    written_by_clip_retrieval(tmp_path)
    (tmp_path / "metadata/metadata_2.parquet").unlink()
    with pytest.raises(ValueError, match="numbers of rows differ"):
        open_embeddings(tmp_path)
    np.save(tmp_path / "img_emb/img_emb_2.npy", np.zeros((3, 5), np.float16))
    with pytest.raises(ValueError, match=r"rows of \[4, 5\]"):
        open_embeddings(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_embeddings(tmp_path / "none")


def test_a_collection_that_is_not_complete_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="not complete"):
        open_embeddings(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no numbers" * 50, None], ids=["empty", "other", "cut"])
def test_a_part_that_cannot_be_read_is_named(content, tmp_path):
    written_by_clip_retrieval(tmp_path)
    path = tmp_path / "img_emb/img_emb_2.npy"
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(ValueError, match=r"img_emb_2\.npy cannot be read as \.npy"):
        open_embeddings(tmp_path)


@pytest.mark.parametrize("content", [b"no table" * 50, None], ids=["other", "cut"])
def test_metadata_that_cannot_be_read_is_named(content, tmp_path):
    written_by_clip_retrieval(tmp_path)
    path = sorted((tmp_path / "metadata").iterdir())[1]
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read as Parquet"):
        open_embeddings(tmp_path)


def test_parts_of_several_types_are_not_rounded(tmp_path):
    written_by_clip_retrieval(tmp_path)
    x_NE = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    np.save(tmp_path / "img_emb/img_emb_2.npy", x_NE)
    vectors = open_embeddings(tmp_path).vectors["image"]
    assert [str(part.dtype) for part in vectors.parts] == ["float16", "float32", "float16"]
    np.testing.assert_array_equal(vectors.take(np.arange(7, 16)), x_NE)
    z_1E = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(
        vectors.scores(z_1E, np.arange(7, 16)[None])[0], x_NE.sum(axis=1), atol=1e-6
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"rows": 24}'])
def test_a_damaged_manifest_is_refused(content, tmp_path):
    """Not taken for a folder of another program, whose numbers may have another type."""
    written_by_clip_retrieval(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json (is damaged|has no dtype)"):
        open_embeddings(tmp_path)

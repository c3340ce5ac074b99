"""Predictions are those of the nearest class, with the probabilities of the model's loss."""

import csv
import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from clip_jax.collection import classify as lib
from clip_jax.config import DataConfig

CLASSES = ("red", "green", "blue")
TEMPLATES = ("a {} square", "{}")
DATA = DataConfig(threads=1, max_bad_share=0.5)


@pytest.fixture(scope="module")
def classified(loaded, apply, mesh, pictures):
    """All predictions, and the embeddings that they must follow from."""
    cfg = lib.ClassifyConfig(top=2, batch_size=8)
    found = list(
        lib.classify(loaded, pictures(), CLASSES, TEMPLATES, cfg=cfg, data=DATA, mesh=mesh)
    )
    prompts = loaded.tokenizer([t.replace("{}", name) for name in CLASSES for t in TEMPLATES])
    z_STE = apply(loaded.variables, prompts, method="encode_text").reshape(3, 2, -1)
    z_SE = z_STE.mean(axis=1)
    z_SE = z_SE / np.linalg.norm(z_SE, axis=1, keepdims=True)
    samples = [pictures()[prediction.row.sample] for prediction in found]
    pixels = np.stack([loaded.preprocess(sample.image) for sample in samples])
    z_NE = apply(loaded.variables, pixels, method="encode_image")
    return found, np.asarray(z_NE, np.float64) @ np.asarray(z_SE, np.float64).T


def test_the_best_classes_come_with_their_softmax(classified, loaded):
    found, cosine_NS = classified
    assert [one.row.sample for one in found] == [n for n in range(43) if n not in (5, 17)]
    scale = np.exp(loaded.variables["params"]["logit_scale"])
    expected_NS = np.exp(scale * cosine_NS)
    expected_NS /= expected_NS.sum(axis=1, keepdims=True)
    for one, expected_S in zip(found, expected_NS):
        order = np.argsort(-expected_S)[:2]
        assert one.classes == tuple(CLASSES[place] for place in order)
        np.testing.assert_allclose(one.probabilities, expected_S[order], rtol=1e-4)


def test_a_sigmoid_model_gives_each_class_its_own_probability(loaded):
    params = {"logit_scale": np.log(10.0), "logit_bias": np.float32(-5.0)}
    sigmoid = loaded._replace(variables={"params": params})
    z_BE, z_SE = np.eye(3)[:1], np.eye(3)[:2]
    found_BS = lib.score(sigmoid, z_BE, z_SE)
    np.testing.assert_allclose(found_BS, [[1 / (1 + np.exp(-5)), 1 / (1 + np.exp(5))]], rtol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_hold_all_predictions(ending, classified, tmp_path):
    found, _ = classified
    path = tmp_path / f"new/found.{ending}"
    assert list(lib.write_table(path, iter(found), 2)) == found
    if ending == "csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(path).to_pylist()
    assert [row["key"] for row in rows] == [one.row.key for one in found]
    assert [row["class_1"] for row in rows] == [one.classes[0] for one in found]
    second = [float(row["probability_2"]) for row in rows]
    np.testing.assert_allclose(second, [one.probabilities[1] for one in found])
    assert [path.name for path in path.parent.iterdir()] == [path.name]


def test_an_ending_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        next(lib.write_table(tmp_path / "found.txt", iter([]), 2))


def test_links_lead_to_the_pictures_of_a_class(classified, tmp_path):
    one = classified[0][0]
    picture = tmp_path / "p.png"
    picture.write_bytes(b"pixels")
    links = lib.Links(tmp_path / "sorted", ("../red", "b:lue"), 0.6)
    likely = dataclasses.replace(one, classes=("../red",), probabilities=(0.7,))
    unsure = dataclasses.replace(one, classes=("b:lue",), probabilities=(0.5,))
    for prediction in (likely, unsure, likely):  # twice: as it is
        links.add(prediction, str(picture))
    links_to = [path for path in (tmp_path / "sorted").rglob("*") if path.is_symlink()]
    assert sorted(path.parent.name for path in links_to) == ["_._red", "_unsure"]
    assert all(path.read_bytes() == b"pixels" for path in links_to)
    assert {path.parent.parent for path in links_to} == {tmp_path / "sorted"}


def test_links_never_replace_a_file(classified, tmp_path):
    one = dataclasses.replace(classified[0][0], classes=("red",), probabilities=(0.9,))
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "p_0").write_text("mine")
    with pytest.raises(ValueError, match="is no link to"):
        lib.Links(tmp_path, ("red",), 0.0).add(one, "/pictures/0.png")
    with pytest.raises(ValueError, match="no file of its own"):
        lib.Links(tmp_path, ("red",), 0.0).add(one, None)
    with pytest.raises(ValueError, match="share a folder"):
        lib.Links(tmp_path, ("a/b", "a:b"), 0.0)


def test_a_class_named_twice_is_refused(loaded, mesh, pictures):
    cfg = lib.ClassifyConfig(batch_size=8)
    found = lib.classify(
        loaded, pictures(), ("a", "b", "a"), TEMPLATES, cfg=cfg, data=DATA, mesh=mesh
    )
    with pytest.raises(ValueError, match="named twice: a"):
        next(found)


def test_a_picture_that_was_sorted_elsewhere_before_is_refused(classified, tmp_path):
    one = dataclasses.replace(classified[0][0], classes=("red",), probabilities=(0.9,))
    lib.Links(tmp_path, ("red", "blue"), 0.0).add(one, "/pictures/0.png")
    again = lib.Links(tmp_path, ("red", "blue"), 0.0)
    again.add(one, "/pictures/0.png")
    with pytest.raises(ValueError, match="red/p_0 was sorted by other classes"):
        again.add(dataclasses.replace(one, classes=("blue",)), "/pictures/0.png")


def test_keys_and_classes_that_look_alike_or_are_long_have_links_of_their_own(classified, tmp_path):
    name = "\u732b" * 120
    links = lib.Links(tmp_path, (name,), 0.0)
    row = classified[0][0].row
    for key in ("a/b", "a_b", f"{name}.png"):
        found = dataclasses.replace(
            classified[0][0], row=row._replace(key=key), classes=(name,), probabilities=(0.9,)
        )
        links.add(found, f"/pictures/{key}")
    assert {str(path.readlink()) for path in tmp_path.glob("*/*")} == {
        "/pictures/a/b", "/pictures/a_b", f"/pictures/{name}.png",
    }  # fmt: skip

"""A query's vector is that of the model, for texts, pictures, rows and their weighted sums."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax.search
from clip_jax.collection.embed import model_fingerprint
from clip_jax.data.images.transforms import ImageError
from clip_jax.models.clip import create_model
from clip_jax.search import queries
from clip_jax.search.model import QueryModel
from clip_jax.search.queries import Part, QueryEncoder, load_encoder, parse_parts
from clip_jax.weights.load import Loaded, preprocess_of


class Words:
    """Every word by a hash of it; the end token is the largest id. As long as CLIP's texts."""

    context_length = 77

    def __call__(self, texts, rng=None, mask="truncate"):
        rows = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(rows, texts):
            ids = [1 + sum(map(ord, word)) % 60 for word in text.split()][:76]
            row[: len(ids) + 1] = [*ids, 63]
        return rows


@pytest.fixture(scope="module")
def loaded():
    """A tiny model with texts of 77 tokens."""
    config = create_model("ViT-test").config
    text = dataclasses.replace(config.text, context_length=77)
    model = create_model(dataclasses.replace(config, text=text))
    images = np.zeros((1, 16, 16, 3), np.uint8)
    variables = jax.jit(model.init)(jax.random.key(0), images, np.ones((1, 77), np.int32))
    return Loaded(model, jax.device_get(variables), Words(), preprocess_of(model.config))


@pytest.fixture(scope="module")
def index(loaded, write_embeddings, vectors_of, tmp_path_factory):
    x_NE = vectors_of(0, 40, loaded.model.config.embed_dim)
    folder = tmp_path_factory.mktemp("queries") / "e"
    return clip_jax.search.open(write_embeddings(folder, x_NE, dtype="float32"))


@pytest.fixture(scope="module")
def encode(loaded, index):
    return QueryEncoder(loaded, index)


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    Image.fromarray(pixels_HWC).save(file, "PNG")
    return file.getvalue()


def test_texts_of_any_length_are_those_of_the_whole_context(loaded, encode):
    texts = ["a", "a b c " * 9, "word " * 90, "a red circle"]
    apply = jax.jit(loaded.model.apply, static_argnames="method")
    expected = apply(loaded.variables, Words()(texts), method="encode_text")
    np.testing.assert_allclose(encode([[Part("text", t)] for t in texts]), expected, atol=2e-6)
    # Cut to one length where all are short, which must not change them.
    short = encode([[Part("text", texts[0])], [Part("text", texts[3])]])
    np.testing.assert_allclose(short, np.asarray(expected)[[0, 3]], atol=2e-6)


def test_parts_are_added_with_their_weights(loaded, encode, index, png):
    apply = jax.jit(loaded.model.apply, static_argnames="method")
    text = apply(loaded.variables, Words()(["a b"]), method="encode_text")[0]
    pixels = loaded.preprocess(png)[None]
    image = apply(loaded.variables, pixels, method="encode_image")[0]
    row = index.vectors.take(np.array([7]))[0]
    parts = [Part("text", "a b", 0.5), Part("image", png, 2.0), Part("row", 7, -0.25)]
    expected = 0.5 * text + 2 * image - 0.25 * row
    found = encode([[Part("row", 3)], parts])
    np.testing.assert_allclose(found[1], expected / np.linalg.norm(expected), atol=2e-6)
    np.testing.assert_allclose(found[0], index.vectors.take(np.array([3]))[0], atol=1e-6)


def test_what_has_no_direction_or_no_picture_is_refused(encode):
    with pytest.raises(ValueError, match="no direction"):
        encode([[Part("row", 3), Part("row", 3, -1.0)]])
    with pytest.raises(ValueError, match="no direction"):
        encode([[]])
    with pytest.raises(ImageError):
        encode([[Part("image", b"GIF89a no picture")]])
    with pytest.raises(IndexError):
        encode([[Part("row", 40)]])


def test_a_model_of_another_width_is_refused(loaded, write_embeddings, vectors_of, tmp_path):
    other = clip_jax.search.open(write_embeddings(tmp_path / "e", vectors_of(0, 9, 8)))
    with pytest.raises(ValueError, match="the index has 8"):
        QueryEncoder(loaded, other)


def test_the_model_is_that_of_the_embeddings_at_their_step(loaded, index, monkeypatch):
    origin = {"model": "runs/a", "step": 8, "architecture": None}
    manifest = {"origin": origin, "model_fingerprint": model_fingerprint(loaded)}
    monkeypatch.setattr(index.embeddings, "manifest", manifest)
    asked, found = [], [loaded]

    def load(path, architecture, *, step):
        asked.append((path, step))
        return found[-1]

    monkeypatch.setattr(queries, "load_to_host", load)
    load_encoder(index)
    load_encoder(index, "copies/a")
    assert asked == [("runs/a", 8), ("copies/a", None)]
    trained = jax.tree.map(lambda leaf: leaf + np.float32(1e-3), loaded.variables)
    found.append(loaded._replace(variables=trained))
    with pytest.raises(ValueError, match="runs/a is not the model that"):
        load_encoder(index)
    monkeypatch.setattr(index.embeddings, "manifest", None)
    with pytest.raises(ValueError, match="does not say which model"):
        load_encoder(index)


def test_a_command_line_gives_texts_pictures_rows_and_weights(tmp_path, png):
    (tmp_path / "a=b.png").write_bytes(png)
    assert parse_parts(["a red bicycle", "x=y", "row:12=0.5", f"{tmp_path}/a=b.png=-2"]) == [
        Part("text", "a red bicycle"),
        Part("text", "x=y"),
        Part("row", 12, 0.5),
        Part("image", png, -2.0),
    ]
    with pytest.raises(ValueError, match="no image file"):
        parse_parts(["gone.jpg"])
    (tmp_path / "broken.png").write_bytes(png[:40])
    with pytest.raises(ValueError, match=r"broken\.png cannot be read as a picture"):
        parse_parts([f"{tmp_path}/broken.png=0.5"])
    for empty in ("", "  ", "=0.5"):
        with pytest.raises(ValueError, match="is no query"):
            parse_parts(["red", empty])
    for weight in ("nan", "inf", "-101"):
        with pytest.raises(ValueError, match="a weight is from -100 to 100"):
            parse_parts([f"red={weight}"])
    for row in ("row:-1", "row:1.5=2", "row: 3", "row:"):  # no texts
        with pytest.raises(ValueError, match="a row is a whole number"):
            parse_parts([row])
    assert parse_parts(["row: of houses"]) == [Part("text", "row: of houses")]


def test_a_type_is_chosen_by_what_the_model_makes_of_texts_and_pictures(loaded, index, monkeypatch):
    asked = {}

    def fast_model(model, variables, inputs):
        asked.update({kind: (x.shape, x.dtype) for kind, x in inputs.items()})
        return QueryModel(model, variables, "bfloat16")

    monkeypatch.setattr(queries, "fast_model", fast_model)
    assert QueryEncoder(loaded, index, "auto").dtype == "bfloat16"
    assert asked == {"image": ((8, 16, 16, 3), np.uint8), "text": ((8, 16), np.int32)}
    QueryEncoder(loaded._replace(tokenizer=None), index, "auto")
    assert QueryEncoder(loaded, index).dtype == "float32"

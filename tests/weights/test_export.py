"""Tests of writing a model for other libraries."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from clip_jax.data.tokenizers.registry import ClipTokenizer, train_sentencepiece
from clip_jax.weights.export import export
from clip_jax.weights.load import load_released


def test_huggingface_gets_weights_config_preprocessor_and_tokenizer(configs, variables, tmp_path):
    text = dataclasses.replace(configs["plain"].text, vocab_size=49_408)
    config = dataclasses.replace(configs["plain"], text=text)
    params = dict(variables["plain"]["params"])
    params["text"] = params["text"] | {"token_embedding": np.zeros((49_408, 16), np.float32)}
    export(tmp_path / "a", config, {"params": params}, tokenizer=ClipTokenizer(6))
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert files == {
        "config.json", "model.safetensors", "preprocessor_config.json", "vocab.json", "merges.txt",
        "tokenizer_config.json", "special_tokens_map.json",
    }  # fmt: skip
    vocabulary = json.loads((tmp_path / "a" / "vocab.json").read_text())
    assert vocabulary["<|endoftext|>"] == 49_407
    content = json.loads((tmp_path / "a" / "config.json").read_text())
    assert content["text_config"]["eos_token_id"] == 49_407
    with safe_open(tmp_path / "a" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_our_own_tokenizer_goes_along_and_comes_back(configs, variables, tmp_path):
    tokenizer = train_sentencepiece(["a red circle", "a blue square"] * 3, 400, 6)
    text = dataclasses.replace(configs["plain"].text, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(configs["plain"], text=text)
    params = dict(variables["plain"]["params"])
    embedding = np.zeros((tokenizer.vocab_size, 16), np.float32)
    params["text"] = params["text"] | {"token_embedding": embedding}
    for library in ("huggingface", "open_clip"):
        export(tmp_path / library, config, {"params": params}, to=library, tokenizer=tokenizer)
        again = load_released(tmp_path / library).tokenizer
        np.testing.assert_array_equal(again(["a red square"]), tokenizer(["a red square"]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_written_in_the_asked_for_precision(dtype, configs, variables, tmp_path):
    export(tmp_path / "a", configs["resnet"], variables["resnet"], to="open_clip", dtype=dtype)
    tensors = load_file(tmp_path / "a" / "open_clip_model.safetensors")
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert tensors["visual.conv1.weight"].dtype == kind
    assert tensors["visual.bn1.num_batches_tracked"].dtype == np.int64


def test_nothing_is_overwritten_and_nothing_half_is_left(configs, variables, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export(tmp_path / "a", configs["plain"], variables["plain"])
    with pytest.raises(ValueError, match="transformers has no tower resnet"):
        export(tmp_path / "b", configs["resnet"], variables["resnet"])
    broken = {"params": {"image": {}}}
    with pytest.raises(KeyError):
        export(tmp_path / "c", configs["plain"], broken)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


TARGETS = {
    "a link to an empty directory": lambda folder: (folder / "link").symlink_to(folder / "real"),
    "a link to nothing": lambda folder: (folder / "link").symlink_to(folder / "new"),
    "half of an earlier export": lambda folder: (folder / ".link.partial").mkdir(),
}


@pytest.mark.parametrize("target", TARGETS)
def test_links_and_what_was_left_half_written_are_exported_into(
    target, configs, variables, tmp_path
):
    (tmp_path / "real").mkdir()
    TARGETS[target](tmp_path)
    export(tmp_path / "link", configs["plain"], variables["plain"], to="open_clip")
    assert (tmp_path / "link").is_symlink() == ("link to" in target)
    files = sorted(file.name for file in (tmp_path / "link").iterdir())
    assert files == ["open_clip_config.json", "open_clip_model.safetensors"]
    assert not list(tmp_path.glob("*.partial"))


def test_the_working_directory_and_a_home_are_directories(
    configs, variables, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, place in ((".", "here"), ("~/there", "there")):
        export(name, configs["plain"], variables["plain"], to="open_clip")
        assert (tmp_path / place / "open_clip_config.json").is_file()


def test_a_file_in_the_place_of_the_directory_stays_and_is_named(configs, variables, tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="a is a file: export into a new directory"):
        export(tmp_path / "a", configs["plain"], variables["plain"])
    assert (tmp_path / "a").read_text() == "mine"


def test_a_tokenizer_that_a_library_has_not_is_said(configs, variables, tmp_path, caplog):
    tokenizer = train_sentencepiece(["a red circle", "a blue square"] * 3, 400, 6)
    export(tmp_path / "a", configs["plain"], variables["plain"], tokenizer=tokenizer)
    settings = json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "clip_jax_sentencepiece_Tokenizer"}
    assert "transformers has no tokenizer of the kind sentencepiece" in caplog.text

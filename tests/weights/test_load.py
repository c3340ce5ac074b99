"""Tests of loading released weights: the files are those that `export` writes."""

import dataclasses
import io
import json

import chex
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from clip_jax.models.architectures import model_config
from clip_jax.weights import big_vision
from clip_jax.weights.export import export
from clip_jax.weights.load import load_released
from clip_jax.weights.mapping import export_tensors


@pytest.fixture
def released(configs, variables, tmp_path):
    """The plain model as open_clip's directory."""
    export(tmp_path / "released", configs["plain"], variables["plain"], to="open_clip")
    return tmp_path / "released"


@pytest.mark.parametrize("name,library", [("plain", "open_clip"), ("clipa", "open_clip"),
                                          ("resnet", "open_clip"), ("plain", "huggingface"),
                                          ("siglip", "huggingface")])  # fmt: skip
def test_a_directory_tells_its_architecture(name, library, configs, variables, tmp_path):
    export(tmp_path / name, configs[name], variables[name], to=library)
    loaded = load_released(tmp_path / name)
    chex.assert_trees_all_equal(loaded.variables, variables[name])
    config = loaded.model.config
    assert (config.vision, config.text) == (configs[name].vision, configs[name].text)
    crops = library == "huggingface" and name == "plain"  # as transformers does it
    offset = "floor" if crops else "round"
    assert config.preprocess == dataclasses.replace(configs[name].preprocess, crop_offset=offset)


def test_a_file_is_read_with_the_config_beside_it_or_a_given_one(
    released, configs, variables, tmp_path
):
    file = released / "open_clip_model.safetensors"
    chex.assert_trees_all_equal(load_released(file).variables, variables["plain"])
    alone = tmp_path / "alone.safetensors"
    file.rename(alone)
    loaded = load_released(alone, configs["plain"])
    chex.assert_trees_all_equal(loaded.variables, variables["plain"])
    with pytest.raises(ValueError, match="no known architecture"):
        load_released(alone)


def test_positions_are_resized_to_a_given_architecture(released, configs):
    vision = dataclasses.replace(configs["plain"].vision, image_size=32)
    larger = dataclasses.replace(configs["plain"], vision=vision)
    loaded = load_released(released, larger)
    assert loaded.variables["params"]["image"]["position_embedding"].shape == (17, 32)
    assert loaded.preprocess.image_size == 32
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert loaded.model.apply(loaded.variables, images, method="encode_image").shape == (2, 8)


def test_a_wrong_architecture_is_refused_with_both_shapes_and_the_closest(released, configs):
    text = dataclasses.replace(configs["plain"].text, width=32)
    wrong = dataclasses.replace(configs["plain"], text=text)
    with pytest.raises(ValueError, match=r"\(6, 16\).*\(6, 32\).*closest"):
        load_released(released, wrong)
    with pytest.raises(ValueError, match=r"square grid|needs"):
        load_released(released, "RN50")


def test_a_missing_tensor_is_named(released):
    file = released / "open_clip_model.safetensors"
    tensors = load_file(file)
    for name in ("positional_embedding", "transformer.resblocks.1.ln_1.weight"):
        save_file({key: tensors[key] for key in tensors if key != name}, file)
        with pytest.raises(ValueError, match=name):
            load_released(file)


def test_big_visions_npz_is_read(random_variables, tmp_path):
    config = model_config("ViT-B-32-SigLIP2-256")
    # One small layer is known by nobody, so a given architecture names it.
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=1, width=32, heads=2, mlp_width=64),
        text=dataclasses.replace(config.text, depth=1, width=32, heads=2, vocab_size=64),
        embed_dim=32,
    )
    variables = random_variables(config)
    tensors = export_tensors(variables, big_vision.links(config, {}))
    np.savez(tmp_path / "a.npz", **{f"params/{name}": tensors[name] for name in tensors})
    loaded = load_released(tmp_path / "a.npz", config)
    chex.assert_trees_all_equal(loaded.variables, variables)
    with pytest.raises(ValueError, match="ViT-B-32-SigLIP2-256"):
        load_released(tmp_path / "a.npz")


def test_preprocess_reads_files_and_bytes(released, tmp_path):
    loaded = load_released(released)
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 10, 10)).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    pixels = loaded.preprocess(tmp_path / "a.png")
    assert pixels.shape == (16, 16, 3)
    assert (pixels == (200, 10, 10)).all()
    np.testing.assert_array_equal(pixels, loaded.preprocess(file.getvalue()))


def test_the_tokenizer_comes_along_where_its_file_does(released, configs, variables, tmp_path):
    assert load_released(released).tokenizer is None  # 50 tokens are not OpenAI's vocabulary
    export(tmp_path / "siglip", configs["siglip"], variables["siglip"])
    assert load_released(tmp_path / "siglip").tokenizer is None


def test_what_is_no_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.json"):
        load_released(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="safetensors"):
        load_released(tmp_path)


def test_hugging_faces_names_need_their_config(configs, variables, tmp_path):
    export(tmp_path / "a", configs["plain"], variables["plain"])
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        load_released(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        load_released(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(ValueError, match="blip"):
        load_released(tmp_path / "a")


def test_weights_are_read_with_their_own_librarys_config_where_both_are_there(
    configs, variables, tmp_path
):
    export(tmp_path / "both", configs["plain"], variables["plain"], to="huggingface")
    export(tmp_path / "other", configs["plain"], variables["plain"], to="open_clip")
    for file in (tmp_path / "other").iterdir():
        file.rename(tmp_path / "both" / file.name)
    for name in ("", "model.safetensors", "open_clip_model.safetensors"):
        loaded = load_released(tmp_path / "both" / name)
        chex.assert_trees_all_equal(loaded.variables, variables["plain"])
    (tmp_path / "both" / "open_clip_model.safetensors").rename(tmp_path / "open_clip_model.bin")
    chex.assert_trees_all_equal(load_released(tmp_path / "both").variables, variables["plain"])

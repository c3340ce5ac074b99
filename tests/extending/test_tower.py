"""A tower from outside the tree is one file: all commands take it, or say by name why they do not."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

import clip_jax
from clip_jax.cli.main import main
from clip_jax.config import MeshConfig
from clip_jax.config_io import from_json, to_json
from clip_jax.load import load_to_host
from clip_jax.models.clip import CLIP, init_variables, sharding_rows
from clip_jax.models.flops import forward_flops, parameter_count, training_flops
from clip_jax.models.tower import name_of
from clip_jax.sharding import make_mesh, shardings
from clip_jax.weights.export import export

NAME = "outside.tower:CONFIG"


def test_a_run_keeps_its_import_path_and_is_loaded(run):
    stored = json.loads((run.path / "model.json").read_text())
    assert stored["vision"]["tower"] == "outside.tower:ConvConfig"
    assert stored["text"]["tower"] == "text_transformer"
    loaded = clip_jax.load(run.path)
    images_BHWC = np.zeros((2, 32, 32, 3), np.uint8)
    z_BE = loaded.model.apply(loaded.variables, images_BHWC, method="encode_image")
    np.testing.assert_allclose(np.linalg.norm(z_BE, axis=1), 1, rtol=1e-5)


def test_it_is_exported_as_stablehlo_and_refused_by_libraries_that_do_not_know_it(
    run, tmp_path, capsys
):
    assert main(["export", str(run.path), str(tmp_path / "stablehlo"), "--platforms", "cpu"]) == 0
    assert (tmp_path / "stablehlo" / "encode_image.bin").exists()
    for library in ("huggingface", "open_clip"):
        assert main(["convert", str(run.path), str(tmp_path / library), "--to", library]) == 2
        assert "has no tower outside.tower:ConvConfig" in capsys.readouterr().err
        assert not (tmp_path / library).exists()
    plain = clip_jax.create_model("ViT-test")
    variables = jax.device_get(init_variables(plain, jax.random.key(0)))
    export(tmp_path / "plain", plain.config, variables, to="open_clip")
    with pytest.raises(ValueError, match=r"open_clip has no tower outside\.tower:ConvConfig"):
        clip_jax.load(tmp_path / "plain", NAME)
    assert load_to_host(tmp_path / "plain").model.config.vision == plain.config.vision


def test_a_tower_of_it_is_frozen_and_initialised_from_a_run(run, train, settings, tmp_path):
    lit = ("--model.freeze", "image", "--model.init-from", str(run.path))
    short = (*settings.model, *settings.data, *settings.short, "--steps", "2")
    train(tmp_path / "lit", *short, *lit, "--model.init-towers", "image")
    old, new = (load_to_host(path).variables["params"] for path in (run.path, tmp_path / "lit"))
    jax.tree.map(np.testing.assert_array_equal, old["image"], new["image"])
    assert not np.array_equal(old["text"]["token_embedding"], new["text"]["token_embedding"])


def test_fsdp_splits_it_by_its_rows_and_without(run):
    loaded = load_to_host(run.path)
    mesh, rows = make_mesh(MeshConfig(fsdp=8)), sharding_rows(loaded.model.config)
    places = shardings(mesh, loaded.variables, rows=rows)["params"]["image"]
    assert places["conv_1"]["kernel"].spec == P(None, None, None, "fsdp")
    assert not places["head"]["kernel"].is_fully_replicated
    assert places["norm_0"]["scale"].is_fully_replicated


def test_it_is_listed_planned_and_counted(run, settings, capsys):
    assert main(["models", NAME]) == 0
    config = load_to_host(run.path).model.config
    shown = capsys.readouterr().out
    assert NAME in shown
    shapes = jax.eval_shape(lambda key: init_variables(CLIP(config), key), jax.random.key(0))
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert training_flops(config) == 3 * forward_flops(config) > 0
    plan = ["plan", *settings.model, *settings.data[-2:], "--data.batch-size", "16", "--no-search"]
    more = ["--topology", "h100:8", "--mesh.fsdp", "2", "--evaluation.batch-size", "16"]
    assert main([*plan, *more]) == 0
    assert "FITS" in capsys.readouterr().out


def test_what_it_has_no_blocks_for_is_refused_by_its_name(run, settings, tmp_path, capsys):
    where = ["--workdir", str(tmp_path / "no"), "--steps", "2"]
    where += [*settings.model, *settings.data, *settings.short]
    assert main(["train", *where, "--optimizer.layer-decay", "0.8"]) == 2
    assert "outside.tower:ConvConfig, a tower of outside.tower:CONFIG, has none" in (
        capsys.readouterr().err
    )
    lit = [
        "--model.freeze",
        "image",
        "--model.init-from",
        str(run.path),
        "--model.unlocked-blocks",
        "1",
    ]
    assert main(["train", *where, *lit]) == 2
    assert "unlocked_blocks=1 must be at most 0" in capsys.readouterr().err
    assert main(["train", *where, "--model.patch-dropout", "0.5"]) == 2
    assert 'has no setting "patch_dropout"' in capsys.readouterr().err


def test_a_config_names_its_towers_and_comes_back():
    config = clip_jax.create_model(NAME).config
    assert from_json(type(config), to_json(config), origin="model.json") == config
    broken = to_json(config)
    broken["vision"]["tower"] = "outside.towers:ConvConfig"
    with pytest.raises(ValueError, match=r"module outside\.towers cannot be imported"):
        from_json(type(config), broken, origin="model.json")
    broken["vision"]["tower"] = "outside.tower:CONFIG"
    with pytest.raises(ValueError, match="not a class of"):
        from_json(type(config), broken, origin="model.json")
    with pytest.raises(ValueError, match="no attribute 'CONFIGS'"):
        clip_jax.create_model("outside.tower:CONFIGS")
    with pytest.raises(ValueError, match="not a ModelConfig"):
        clip_jax.create_model("outside.tower:ConvConfig")
    with pytest.raises(ValueError, match=r'both towers .* have a setting "width"'):
        clip_jax.create_model(NAME, width=16)
    assert clip_jax.create_model(NAME, stages=2).config.vision.stages == 2


def test_a_tower_that_no_file_could_name_or_that_returns_something_else_is_refused():
    from outside.tower import CONFIG, ConvConfig

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Hidden(ConvConfig):
        def module(self, embed_dim, compute):
            return Bare(embed_dim)

    class Bare(nn.Module):
        embed_dim: int

        @nn.compact
        def __call__(self, images_BHWC, *, train=False):
            return nn.Dense(self.embed_dim)(images_BHWC.mean(axis=(1, 2)))

    model = CLIP(dataclasses.replace(CONFIG, vision=Hidden()))
    with pytest.raises(ValueError, match=r"image tower Hidden must return \(embedding, tokens\)"):
        jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
    with pytest.raises(ValueError, match="cannot be imported under its name"):
        name_of(Hidden())

"""A tower from outside the tree is one file: all commands take it, or say by name why they do not."""

import dataclasses
import json
import shutil
from pathlib import Path

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
SETTINGS = (
    *("--model.name", NAME, "--model.dtype", "float32", "--tokenizer.kind", "outside.source:Bytes"),
    *(
        "--data.source",
        "outside.source:Colors:64",
        "--data.eval-source",
        "outside.source:Colors:16",
    ),
    *("--data.batch-size", "16", "--evaluation.batch-size", "16", "--logging.every-steps", "1"),
    *("--logging.no-progress", "--logging.no-report", "--optimizer.warmup-steps", "1"),
    *("--optimizer.schedule", "constant", "--optimizer.learning-rate", "1e-3"),
    *("--checkpoint.every-steps", "2", "--checkpoint.allow-change", "steps"),
)
ON_EIGHT = ("--mesh.fsdp", "2", "--data.accumulation", "2")


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield


def train(workdir: Path, steps: int, *settings: str) -> dict[int, float]:
    """The losses of a run by the real command."""
    assert (
        main(["train", *SETTINGS, "--workdir", str(workdir), "--steps", str(steps), *settings]) == 0
    )
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def run(on_the_path, tmp_path_factory) -> Path:
    """Four steps on eight devices with fsdp 2 and two micro-batches."""
    workdir = tmp_path_factory.mktemp("tower") / "run"
    losses = train(workdir, 4, *ON_EIGHT)
    assert sorted(losses) == [1, 2, 3, 4] and losses[4] < losses[1]
    return workdir


def test_it_resumes_as_an_uninterrupted_run(run, lose_since, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    lose_since(tmp_path / "run", 2)
    resumed = train(tmp_path / "run", 4, *ON_EIGHT)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert {line["step"]: line["loss"] for line in lines if "loss" in line} == resumed


def test_a_run_keeps_its_import_path_and_is_evaluated_and_loaded(run, tmp_path):
    stored = json.loads((run / "model.json").read_text())
    assert stored["vision"]["tower"] == "outside.tower:ConvConfig"
    assert stored["text"]["tower"] == "text_transformer"
    figures = tmp_path / "figures.json"
    assert main(["eval", str(run), "--json-out", str(figures)]) == 0
    assert json.loads(figures.read_text())["eval/samples"] == 16
    loaded = clip_jax.load(run)
    images_BHWC = np.zeros((2, 32, 32, 3), np.uint8)
    z_BE = loaded.model.apply(loaded.variables, images_BHWC, method="encode_image")
    np.testing.assert_allclose(np.linalg.norm(z_BE, axis=1), 1, rtol=1e-5)


def test_it_is_exported_as_stablehlo_and_refused_by_libraries_that_do_not_know_it(
    run, tmp_path, capsys
):
    assert main(["export", str(run), str(tmp_path / "stablehlo"), "--platforms", "cpu"]) == 0
    assert (tmp_path / "stablehlo" / "encode_image.bin").exists()
    for library in ("huggingface", "open_clip"):
        assert main(["convert", str(run), str(tmp_path / library), "--to", library]) == 2
        assert "has no tower outside.tower:ConvConfig" in capsys.readouterr().err
        assert not (tmp_path / library).exists()
    plain = clip_jax.create_model("ViT-test")
    variables = jax.device_get(init_variables(plain, jax.random.key(0)))
    export(tmp_path / "plain", plain.config, variables, to="open_clip")
    with pytest.raises(ValueError, match=r"open_clip has no tower outside\.tower:ConvConfig"):
        clip_jax.load(tmp_path / "plain", NAME)
    assert load_to_host(tmp_path / "plain").model.config.vision == plain.config.vision


def test_a_tower_of_it_is_frozen_and_initialised_from_a_run(run, tmp_path):
    lit = ("--model.freeze", "image", "--model.init-from", str(run), "--model.init-towers", "image")
    train(tmp_path / "lit", 2, *lit)
    old, new = (load_to_host(path).variables["params"] for path in (run, tmp_path / "lit"))
    jax.tree.map(np.testing.assert_array_equal, old["image"], new["image"])
    assert not np.array_equal(old["text"]["token_embedding"], new["text"]["token_embedding"])


def test_fsdp_splits_it_by_its_rows_and_without(run):
    loaded = load_to_host(run)
    mesh, rows = make_mesh(MeshConfig(fsdp=8)), sharding_rows(loaded.model.config)
    places = shardings(mesh, loaded.variables, rows=rows)["params"]["image"]
    assert places["conv_1"]["kernel"].spec == P(None, None, None, "fsdp")
    assert not places["head"]["kernel"].is_fully_replicated
    assert places["norm_0"]["scale"].is_fully_replicated


def test_it_is_listed_planned_and_counted(run, capsys, caplog):
    assert main(["models", NAME]) == 0
    config = load_to_host(run).model.config
    shown = capsys.readouterr().out
    assert NAME in shown
    shapes = jax.eval_shape(lambda key: init_variables(CLIP(config), key), jax.random.key(0))
    assert parameter_count(config) == sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert training_flops(config) == 3 * forward_flops(config) > 0
    plan = ["plan", *SETTINGS[:6], "--data.batch-size", "16", "--topology", "h100:8", "--no-search"]
    assert main([*plan, "--mesh.fsdp", "2", "--evaluation.batch-size", "16"]) == 0
    assert "FITS" in capsys.readouterr().out


def test_what_it_has_no_blocks_for_is_refused_by_its_name(run, tmp_path, capsys):
    where = ["--workdir", str(tmp_path / "no"), "--steps", "2"]
    assert main(["train", *SETTINGS, *where, "--optimizer.layer-decay", "0.8"]) == 2
    assert "outside.tower:ConvConfig, a tower of outside.tower:CONFIG, has none" in (
        capsys.readouterr().err
    )
    lit = ["--model.freeze", "image", "--model.init-from", str(run), "--model.unlocked-blocks", "1"]
    assert main(["train", *SETTINGS, *where, *lit]) == 2
    assert "unlocked_blocks=1 must be at most 0" in capsys.readouterr().err
    assert main(["train", *SETTINGS, *where, "--model.patch-dropout", "0.5"]) == 2
    assert 'has no setting "patch_dropout"' in capsys.readouterr().err


def test_a_config_names_its_towers_and_comes_back(on_the_path):
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


def test_a_tower_that_no_file_could_name_or_that_returns_something_else_is_refused(on_the_path):
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

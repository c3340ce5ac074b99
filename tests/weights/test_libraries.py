"""Files as people have them: whatever wraps the weights, they are the same weights."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import chex
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clip_jax.models.architectures import ARCHITECTURES, model_config
from clip_jax.weights import huggingface, open_clip
from clip_jax.weights.export import export
from clip_jax.weights.libraries import PREPROCESSED_APART, library_of
from clip_jax.weights.load import load_released
from clip_jax.weights.mapping import _whole_shape, abstract_variables, export_tensors


@pytest.fixture
def released(configs, variables, tmp_path):
    """The plain model as open_clip's directory."""
    export(tmp_path / "released", configs["plain"], variables["plain"], to="open_clip")
    return tmp_path / "released"


@pytest.fixture
def tensors(configs, variables):
    return export_tensors(variables["plain"], open_clip.links(configs["plain"]))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "clip.", "_orig_mod.module.", "module._orig_mod.",
     "model.clip.", "module.model._orig_mod.", "clip_model.module."],
)  # fmt: skip
def test_wrappers_of_any_nesting_are_stripped(prefix, tensors, configs, variables, tmp_path):
    save_file({prefix + name: tensors[name] for name in tensors}, tmp_path / "a.safetensors")
    loaded = load_released(tmp_path / "a.safetensors", configs["plain"])
    chex.assert_trees_all_equal(loaded.variables, variables["plain"])


def test_a_wrapper_around_one_part_is_stripped(tensors, configs, variables, tmp_path):
    renamed = {
        name.replace("visual.", "visual._orig_mod.").replace(
            "resblocks.", "resblocks.module."
        ): array
        for name, array in tensors.items()
    }
    save_file(renamed, tmp_path / "a.safetensors")
    loaded = load_released(tmp_path / "a.safetensors", configs["plain"])
    chex.assert_trees_all_equal(loaded.variables, variables["plain"])


def test_what_lies_beside_a_wrapped_model_is_named(tensors, configs, tmp_path):
    head = {"head.weight": np.zeros((3, 8), np.float32)}
    save_file(
        {f"clip.{name}": tensors[name] for name in tensors} | head, tmp_path / "a.safetensors"
    )
    with pytest.raises(ValueError, match=r"no place for: head\.weight"):
        load_released(tmp_path / "a.safetensors", configs["plain"])


def test_two_tensors_of_one_name_are_refused(tensors, configs, tmp_path):
    twice = tensors | {"module.logit_scale": tensors["logit_scale"]}
    save_file(twice, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match='"logit_scale" twice'):
        load_released(tmp_path / "a.safetensors", configs["plain"])


@pytest.mark.parametrize("name", ["plain", "clipa", "resnet"])
def test_a_text_tower_under_its_own_name_is_read(name, configs, variables, tmp_path):
    export(tmp_path / "a", configs[name], variables[name], to="open_clip")
    links = open_clip.links(configs[name], custom_text=True)
    save_file(
        export_tensors(variables[name], links), tmp_path / "a" / "open_clip_model.safetensors"
    )
    chex.assert_trees_all_equal(load_released(tmp_path / "a").variables, variables[name])


@pytest.mark.parametrize(("name", "table"), [("plain", open_clip), ("siglip", huggingface)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_is_one_number(name, table, shape, configs, variables, tmp_path):
    library = "open_clip" if table is open_clip else "huggingface"
    export(tmp_path / "a", configs[name], variables[name], to=library)
    (file,) = (tmp_path / "a").glob("*.safetensors")
    tensors = load_file(file)
    tensors["logit_scale"] = tensors["logit_scale"].reshape(shape)
    save_file(tensors, file)
    chex.assert_trees_all_equal(load_released(tmp_path / "a").variables, variables[name])


@pytest.mark.parametrize("ending", ["", ".ckpt", ".pth.tar", ".PT", ".weights"])
def test_the_content_tells_the_format(ending, released, configs, variables, tmp_path):
    file = tmp_path / f"a{ending}"
    shutil.copy(released / "open_clip_model.safetensors", file)
    chex.assert_trees_all_equal(load_released(file, configs["plain"]).variables, variables["plain"])


def test_a_directory_of_sentence_transformers_is_followed(configs, variables, tmp_path):
    export(tmp_path / "0_CLIPModel", configs["plain"], variables["plain"])
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    chex.assert_trees_all_equal(load_released(tmp_path).variables, variables["plain"])
    wrong = {"": "lists no CLIPModel", ".": "lists no CLIPModel", "../x": "no file in its folder"}
    for path, words in (wrong | {3: "names 3"}).items():
        (tmp_path / "modules.json").write_text(json.dumps([modules[0] | {"path": path}]))
        with pytest.raises(ValueError, match=rf"modules\.json .*{words}"):
            load_released(tmp_path)
    dense = {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(ValueError, match="lists a Dense in '1_Dense' beside the CLIP model"):
        load_released(tmp_path)


@pytest.mark.parametrize(
    ("value", "word"), [(100.0, "natural logarithm"), (-50.0, "natural logarithm"), (np.nan, "NaN")]
)
def test_an_absurd_scale_is_refused(value, word, released):
    file = released / "open_clip_model.safetensors"
    save_file(load_file(file) | {"logit_scale": np.array(value, np.float32)}, file)
    with pytest.raises(ValueError, match=f"logit_scale.*{word}"):
        load_released(released)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value, released):
    file = released / "open_clip_model.safetensors"
    tensors = load_file(file)
    tensors["visual.proj"] = tensors["visual.proj"].copy()
    tensors["visual.proj"][0, 0] = value
    save_file(tensors, file)
    with pytest.raises(
        ValueError, match=r'"visual\.proj" has 1 of 256 values that are NaN or infinite'
    ):
        load_released(released)


@pytest.mark.parametrize("shape", [(), (3,), (1, 5, 8)])
def test_positions_of_another_rank_are_named(shape, released):
    file = released / "open_clip_model.safetensors"
    save_file(load_file(file) | {"positional_embedding": np.zeros(shape, np.float32)}, file)
    with pytest.raises(ValueError, match='"positional_embedding" has shape'):
        load_released(released)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_quantised_weights_are_refused(dtype, released):
    file = released / "open_clip_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"visual.proj": tensors["visual.proj"].astype(dtype)}, file)
    with pytest.raises(ValueError, match=r'"visual\.proj" holds .*int.*quantised'):
        load_released(released)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("clip_vision_model", "an image tower alone"),
        ("clip_text_model", "a text tower alone"),
        ("siglip_vision_model", "an image tower alone"),
        ("siglip2", "NaFlex"),
        ("chinese_clip", "chinese_clip"),
        ("altclip", "altclip"),
        ("blip", "blip"),
        ("vision-text-dual-encoder", "dual-encoder"),
        ("bert", "bert"),
    ],
)
def test_another_kind_of_model_is_named_whatever_its_tensors(model_type, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name in ("vision_model.embeddings.class_embedding", "embeddings.word_embeddings.weight"):
        save_file({name: np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
        with pytest.raises(
            ValueError, match=rf"config\.json is of model_type .*{words}.*supported"
        ):
            load_released(tmp_path)


@pytest.mark.parametrize("kind", ["CLIPForImageClassification", "CLIPVisionModelWithProjection"])
def test_a_part_of_a_known_kind_is_named(kind, configs, variables, tmp_path):
    export(tmp_path / "a", configs["plain"], variables["plain"])
    file = tmp_path / "a" / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if name.startswith("vision_model")}
    save_file(tensors, file)
    config = tmp_path / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": [kind]}))
    with pytest.raises(ValueError, match=f"{kind}.*both towers"):
        load_released(tmp_path / "a")


@pytest.mark.parametrize("nested", [True, False])
def test_preprocessing_is_read_from_either_file_of_a_processor(
    nested, configs, variables, tmp_path
):
    export(tmp_path / "a", configs["plain"], variables["plain"])
    own = tmp_path / "a" / "preprocessor_config.json"
    content = json.loads(own.read_text())
    half = content | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    processor = {"processor_class": "CLIPProcessor"} | ({"image_processor": half} if nested else {})
    (tmp_path / "a" / "processor_config.json").write_text(json.dumps(processor))
    found = load_released(tmp_path / "a").preprocess.config
    assert found.mean == ((0.5,) * 3 if nested else configs["plain"].preprocess.mean)
    own.unlink()
    found = load_released(tmp_path / "a").preprocess.config
    assert found.mean == ((0.5,) * 3 if nested else configs["plain"].preprocess.mean)


def test_an_assumed_preprocessing_is_said(configs, variables, tmp_path, caplog):
    export(tmp_path / "a", configs["plain"], variables["plain"])
    load_released(tmp_path / "a")
    assert "assumed mean" not in caplog.text
    (tmp_path / "a" / "preprocessor_config.json").unlink()
    with caplog.at_level(logging.WARNING):
        load_released(tmp_path / "a")
    assert "assumed mean (0.48145466" in caplog.text
    assert "resize_mode shortest" in caplog.text


@pytest.mark.parametrize("name", PREPROCESSED_APART)
def test_weights_of_these_shapes_that_were_preprocessed_apart_are_told(name, caplog):
    """A lone file has shapes alone."""
    config = model_config(name)
    ours = abstract_variables(config)
    shapes = {
        link.theirs: _whole_shape(link, ours[link.ours].shape) for link in open_clip.links(config)
    }
    tensors = SimpleNamespace(shapes=lambda: shapes, is_torchscript=False, is_npz=False)
    file = Path("nowhere/open_clip_pytorch_model.bin")
    found = library_of(file, tensors).read_config(file, tensors)
    assert found.name == name
    assert PREPROCESSED_APART[name] in caplog.text
    # OpenAI's weights that were trained on and saved as a state dict have these names too.
    quick = f'if it was trained with QuickGELU, load it with model="{name}-quickgelu"'
    assert (quick in caplog.text) == (f"{name}-quickgelu" in ARCHITECTURES)


def test_old_config_files_still_override(configs, variables, tmp_path):
    export(tmp_path / "a", configs["plain"], variables["plain"])
    config = tmp_path / "a" / "config.json"
    content = json.loads(config.read_text())
    sizes = {"patch_size": [8, 8], "image_size": [16, 16]}
    content["vision_config_dict"] = content["vision_config"] | sizes
    content["vision_config"] |= {"patch_size": 4}
    config.write_text(json.dumps(content))
    chex.assert_trees_all_equal(load_released(tmp_path / "a").variables, variables["plain"])
    content["vision_config_dict"]["image_size"] = [16, 24]
    config.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"config\.json: vision_config_dict: image_size is \[16, 24\]"
    ):
        load_released(tmp_path / "a")


NAMES = {
    "a ConvNeXt image tower": "visual.trunk.stages.0.blocks.0.conv_dw.weight",
    "a MobileCLIP image tower": "visual.trunk.stages.0.blocks.0.token_mixer.mixer.conv_kxk.0.conv.weight",
    "an EVA image tower": "visual.trunk.blocks.0.attn.q_bias",
    "a ViTamin image tower": "visual.trunk.patch_embed.backbone.stem.conv1.weight",
    "PE-Core": "visual.trunk.cls_token",
    "a Swin image tower": "visual.trunk.layers.0.blocks.0.attn.relative_position_bias_table",
    "an image tower of timm": "visual.trunk.layer1.0.conv1.weight",
    "CoCa": "text_decoder.resblocks.0.ln_1.weight",
    "a text tower of Hugging Face": "text.transformer.embeddings.word_embeddings.weight",
    "Apple's own names": "image_encoder.model.patch_embed.0.reparam_conv.weight",
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("given", [False, True])
def test_a_tower_that_this_package_has_not_is_named(kind, given, tensors, configs, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({**tensors, NAMES[kind]: np.zeros((2, 2), np.float32)}, file)
    with pytest.raises(ValueError, match=f"weights.safetensors holds .*{kind}.*known are ViT"):
        load_released(file, configs["plain"] if given else None)


@pytest.mark.parametrize(
    ("name", "words"),
    [("base_model.model.visual.conv1.weight", "PEFT"), ("visual.proj.lora_down.weight", "PEFT"),
     ("text_projection.SCB", "quantised"), ("text_projection.weight_scale_inv", "quantised")],
)  # fmt: skip
def test_weights_that_others_have_changed_are_named(name, words, tensors, configs, tmp_path):
    save_file({**tensors, name: np.ones((2, 2), np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"a\.safetensors holds .*{words}.*{name}"):
        load_released(tmp_path / "a.safetensors", configs["plain"])
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="an adapter of PEFT without its model"):
        load_released(tmp_path)


@pytest.mark.parametrize(("kept", "missing"), [("visual.", "text"), ("", "image")])
def test_a_tower_alone_is_named(kept, missing, tensors, tmp_path):
    chosen = {k: v for k, v in tensors.items() if k.startswith("visual.") == bool(kept)}
    save_file(chosen, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"there is no {missing} tower in it"):
        load_released(tmp_path / "a.safetensors")
    save_file({"conv.weight": np.zeros(1, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"holds no CLIP model: its tensors are conv\.weight"):
        load_released(tmp_path / "a.safetensors")


@pytest.mark.parametrize("owners", [("student.",), ("student.", "teacher.")])
def test_weights_below_another_name_are_named(owners, tensors, tmp_path):
    below = {f"{owner}{name}": tensors[name] for owner in owners for name in tensors}
    save_file(below, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=f"holds tensors below {', '.join(owners)}: save"):
        load_released(tmp_path / "a.safetensors")


def test_numbers_that_float32_cannot_hold_are_refused(tensors, configs, tmp_path):
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    save_file(wide, tmp_path / "a.safetensors")
    load_released(tmp_path / "a.safetensors", configs["plain"])
    wide["visual.proj"][0, 0] = 1e39
    save_file(wide, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r'"visual\.proj" has 1 of 256 values that are NaN or infinite'
    ):
        load_released(tmp_path / "a.safetensors", configs["plain"])

"""Every key of open_clip's configs is honoured, or refused where it is not at its default.

The keys are those of CLIPVisionCfg and CLIPTextCfg of open_clip 3.3.0; tests/parity compares them with
the installed version.
"""

import json

import pytest

from clip_jax.models.architectures import model_config
from clip_jax.weights.open_clip_config import read_config, write_config

HONOURED, REFUSED, WITHOUT_EFFECT = "honoured", "refused", "without effect"
# Another value than the default, and what becomes of it in a model without timm and without a
# Hugging Face tower, of which keys with their names say nothing.
BLOCKS = {
    "act_kwargs": ({"approximate": "tanh"}, HONOURED),
    "norm_kwargs": ({"eps": 1e-6}, HONOURED),
    "block_type": ("custom", REFUSED),
    "qk_norm": (True, REFUSED),
    "scaled_cosine_attn": (True, REFUSED),
    "scale_heads": (True, REFUSED),
    "scale_attn_inner": (True, REFUSED),
    "scale_attn": (True, REFUSED),
    "scale_fc": (True, REFUSED),
}
VISION = {
    "layers": (6, HONOURED),
    "width": (128, HONOURED),
    "head_width": (32, HONOURED),
    "mlp_ratio": (2.0, HONOURED),
    "patch_size": (16, HONOURED),
    "image_size": (256, HONOURED),
    "ls_init_value": (1e-4, REFUSED),
    "patch_dropout": (0.5, HONOURED),
    "attentional_pool": (True, REFUSED),
    "attn_pooler_queries": (128, WITHOUT_EFFECT),  # without attentional_pool
    "attn_pooler_heads": (4, WITHOUT_EFFECT),
    "no_ln_pre": (True, HONOURED),
    "pos_embed_type": ("sin_cos_2d", WITHOUT_EFFECT),  # the positions are read from the weights
    "final_ln_after_pool": (True, WITHOUT_EFFECT),  # with the class token; see below for "avg"
    "pool_type": ("avg", HONOURED),
    "output_tokens": (True, REFUSED),
    **BLOCKS,
    "timm_model_name": ("convnext_base", REFUSED),
    "timm_model_pretrained": (True, WITHOUT_EFFECT),
    "timm_pool": ("abs_attn", WITHOUT_EFFECT),
    "timm_proj": ("mlp", WITHOUT_EFFECT),
    "timm_proj_bias": (True, WITHOUT_EFFECT),
    "timm_drop": (0.1, WITHOUT_EFFECT),
    "timm_drop_path": (0.1, WITHOUT_EFFECT),
}
TEXT = {
    "context_length": (32, HONOURED),
    "vocab_size": (1000, HONOURED),
    "hf_tokenizer_name": ("roberta-base", HONOURED),
    "tokenizer_mode": ("clips", REFUSED),
    "tokenizer_kwargs": ({"clean": "lower"}, WITHOUT_EFFECT),  # on the model: see tokenizer_files
    "width": (256, HONOURED),
    "heads": (4, HONOURED),
    "layers": (6, HONOURED),
    "mlp_ratio": (2.0, HONOURED),
    "ls_init_value": (1e-4, REFUSED),
    "embed_cls": (True, REFUSED),
    "pad_id": (1, WITHOUT_EFFECT),  # without embed_cls
    "eos_id": (5, WITHOUT_EFFECT),  # without pool_type "eos"
    "no_causal_mask": (True, HONOURED),
    "final_ln_after_pool": (True, REFUSED),
    "pool_type": ("eos", HONOURED),
    "proj_bias": (True, HONOURED),
    "proj_type": ("none", HONOURED),
    "output_tokens": (True, REFUSED),
    **BLOCKS,
    "hf_model_name": ("roberta-base", REFUSED),
    "hf_model_pretrained": (False, WITHOUT_EFFECT),
    "hf_proj_type": ("linear", WITHOUT_EFFECT),
    "hf_pooler_type": ("cls_pooler", WITHOUT_EFFECT),
}


def content(name="ViT-B-32"):
    return json.loads(json.dumps(write_config(model_config(name))))


def read(changed):
    return read_config(changed, source="a file", name="x")


CASES = [
    (part, key, value, outcome)
    for part, keys in (("vision_cfg", VISION), ("text_cfg", TEXT))
    for key, (value, outcome) in keys.items()
]


@pytest.mark.parametrize(("part", "key", "value", "outcome"), CASES)
def test_a_key_is_honoured_or_refused(part, key, value, outcome):
    changed = content()
    changed["model_cfg"][part][key] = value
    if outcome == REFUSED:
        with pytest.raises(ValueError, match=rf"a file: .*{part}.*{key}"):
            read(changed)
    else:
        assert (read(changed) != read(content())) == (outcome == HONOURED)


@pytest.mark.parametrize("part", ["vision_cfg", "text_cfg"])
@pytest.mark.parametrize("key", ["positional_embedding_res", "rope"])
def test_a_key_that_open_clip_does_not_know_is_refused(part, key):
    changed = content()
    changed["model_cfg"][part][key] = 1
    with pytest.raises(ValueError, match=key):
        read(changed)


@pytest.mark.parametrize("key", ["multimodal_cfg", "audio_cfg"])
def test_a_third_tower_is_refused(key):
    changed = content()
    changed["model_cfg"][key] = {"layers": 12}
    with pytest.raises(ValueError, match=key):
        read(changed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("timm_pool", "avg"), ("timm_proj", "linear"), ("timm_proj_bias", True), ("timm_drop", 0.1)],
)
def test_a_timm_tower_with_another_head_is_refused(key, value):
    changed = content("ViT-B-16-SigLIP")
    changed["model_cfg"]["vision_cfg"][key] = value
    with pytest.raises(ValueError, match=key):
        read(changed)


@pytest.mark.parametrize(("head_width", "heads"), [(64, 8), (32, 16), (16, 32)])
def test_a_resnets_heads_follow_their_width(head_width, heads):
    changed = content("RN50")
    vision = {"layers": [1, 1, 1, 1], "width": 16, "head_width": head_width, "image_size": 64}
    changed["model_cfg"]["vision_cfg"] = vision
    assert read(changed).vision.heads == heads
    assert read(write_config(read(changed))).vision == read(changed).vision


def test_norm_after_pooling_is_read_with_mean_pooling():
    changed = content()
    changed["model_cfg"]["vision_cfg"] |= {"pool_type": "avg", "final_ln_after_pool": True}
    assert read(changed).vision.pool_before_norm


def test_no_projection_and_an_end_token_come_back_as_they_were_written():
    changed = content()
    changed["model_cfg"]["text_cfg"] |= {"proj_type": "none", "pool_type": "eos", "eos_id": 7}
    config = read(changed)
    assert (config.text.projection, config.text.pool, config.text.end_id) == (False, "eos", 7)
    assert read(write_config(config)) == config


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model_cfg", "embed_dim", "24"),
        ("model_cfg", "embed_dim", None),
        ("model_cfg", "init_logit_scale", [1]),
        ("model_cfg", "vision_cfg", [1]),
        ("vision_cfg", "image_size", [48, 64]),
        ("vision_cfg", "image_size", "224"),
        ("vision_cfg", "patch_size", 0),
        ("vision_cfg", "width", 100.5),
        ("vision_cfg", "layers", [1, 1]),
        ("vision_cfg", "act_kwargs", {"inplace": True}),
        ("vision_cfg", "norm_kwargs", {"bias": False}),
        ("text_cfg", "heads", True),
        ("text_cfg", "pool_type", "none"),
        ("preprocess_cfg", "mean", 0.5),
        ("preprocess_cfg", "mean", [123.7, 116.3, 103.5]),
        ("preprocess_cfg", "mean", [0.5, 0.5, 0.5, 0.5]),
        ("preprocess_cfg", "std", [0, 0.2, 0.2]),
        ("preprocess_cfg", "std", [0.2, 0.2]),
        ("preprocess_cfg", "resize_mode", "crop"),
        ("preprocess_cfg", "interpolation", "lanczos"),
        ("preprocess_cfg", "interpolation", "random"),
        ("preprocess_cfg", "fill_color", [0, 0, 0]),
        ("preprocess_cfg", "fill_color", 256),
        ("preprocess_cfg", "mode", "L"),
        ("preprocess_cfg", "crop_pct", 0.9),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_naming_file_and_key(part, key, value):
    changed = content()
    owner = changed if part in ("model_cfg", "preprocess_cfg") else changed["model_cfg"]
    owner[part] = owner[part] | {key: value}
    with pytest.raises(ValueError, match=rf"^a file: .*{key}"):
        read(changed)


@pytest.mark.parametrize("value", [[1], "x", 3])
@pytest.mark.parametrize("key", ["model_cfg", "preprocess_cfg"])
def test_another_kind_of_json_is_refused(key, value):
    with pytest.raises(ValueError, match=f"a file: {key} is"):
        read(content() | {key: value})
    with pytest.raises(ValueError, match=r"a file is .*an object is needed"):
        read([content()])


def test_square_lists_are_sizes_and_null_is_left_out():
    changed = content()
    changed["model_cfg"]["vision_cfg"] |= {"image_size": [224, 224], "patch_size": [32, 32]}
    changed["preprocess_cfg"] = None
    assert read(changed).vision == model_config("ViT-B-32").vision

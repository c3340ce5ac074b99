"""Every config that open_clip ships: read, with the tensors of its own model, or refused by the key."""

import collections
import dataclasses
import functools

import open_clip
import pytest
import torch

from clip_jax.models.architectures import ARCHITECTURES, with_activation
from clip_jax.weights import open_clip as ours
from clip_jax.weights.mapping import _whole_shape, abstract_variables
from clip_jax.weights.open_clip_config import read_config

CONFIGS = open_clip.list_models()
# What a config must say to be refused: a word of its model_cfg, and the key that the refusal names.
REFUSED = {
    "convnext": "timm_model_name", "eva": "timm_model_name", "fastvit_mci": "timm_model_name",
    "vit_base_mci": "timm_model_name", "vit_large_patch14_clip": "timm_model_name",
    "vit_pe_core": "timm_model_name", "vitamin": "timm_model_name", "swin": "timm_model_name",
    "vit_medium_patch16_gap": "timm_model_name", "vit_relpos": "timm_model_name",
    "attentional_pool": "attentional_pool", "multimodal_cfg": "output_tokens",
    "hf_model_name": "hf_model_name", "ls_init_value": "ls_init_value",
}  # fmt: skip


def key_that_refuses(content: dict) -> str | None:
    words = str(content)
    return next((key for word, key in REFUSED.items() if word in words), None)


def family(name: str) -> str:
    if name.startswith(("RN", "EVA", "PE-Core", "ViTamin", "MobileCLIP", "coca", "convnext")):
        return name.split("-")[0].split("_")[0].rstrip("0123456789x")
    for word in ("SigLIP2", "SigLIP", "CLIPA", "worldwide"):
        if word in name:
            return word
    return "ViT" if name.startswith("ViT-") else "others"


def test_the_families_that_are_read_are_read_whole():
    counts = collections.Counter()
    for name in CONFIGS:
        if key_that_refuses(open_clip.get_model_config(name)) is None:
            counts[family(name)] += 1
    # The numbers of open_clip 3.3.0; a later version may have more.
    least = {"ViT": 31, "RN": 10, "SigLIP2": 15, "SigLIP": 11, "CLIPA": 6, "worldwide": 7}
    assert {name: counts[name] for name in least} == least
    assert set(counts) == set(least)
    own = {name for name in ARCHITECTURES if "test" in name or "tiny" in name}
    assert set(ARCHITECTURES) - own == {n for n in CONFIGS if n in ARCHITECTURES}


@functools.cache
def shapes_of(config, custom_text: bool) -> dict[str, tuple[int, ...]]:
    known = abstract_variables(config)
    links = ours.links(config, custom_text=custom_text)
    return {link.theirs: _whole_shape(link, known[link.ours].shape) for link in links}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_read_with_all_its_tensors_or_refused_by_its_key(name):
    content = open_clip.get_model_config(name)
    key = key_that_refuses(content)
    if key:
        with pytest.raises(ValueError, match=rf"^a file: model_cfg: .*{key}.* support"):
            read_config({"model_cfg": content}, source="a file", name=name)
        return
    config = read_config({"model_cfg": content}, source="a file", name=name)
    custom_text = content.get("custom_text", False) or "timm_model_name" in content["vision_cfg"]
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    with torch.device("meta"):
        model = kind(**{k: v for k, v in content.items() if k != "custom_text"})
    theirs = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if not ours.is_no_weight(name)
    }
    # No shape depends on the activation, of which many configs have two.
    config = dataclasses.replace(with_activation(config, "gelu"), name="x")
    assert shapes_of(config, custom_text) == theirs

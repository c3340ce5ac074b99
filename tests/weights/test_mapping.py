"""Tests of tables of names, for every library and family."""

import math

import chex
import numpy as np
import pytest

from clip_jax.weights import big_vision, huggingface, open_clip
from clip_jax.weights.mapping import FORMS, Link, export_tensors, import_variables


class Memory:
    """Tensors in memory."""

    def __init__(self, arrays):
        self.arrays = arrays

    def shapes(self):
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name):
        return self.arrays[name]


def read(config, links, arrays, ignored=lambda name: False):
    return import_variables(config, links, Memory(arrays), ignored=ignored, source="weights.file")


TABLES = {
    "open_clip plain": ("plain", open_clip.links),
    "open_clip clipa": ("clipa", open_clip.links),
    "open_clip resnet": ("resnet", open_clip.links),
    "open_clip siglip": ("siglip", open_clip.links),
    "huggingface plain": ("plain", huggingface.links),
    "huggingface siglip": ("siglip", huggingface.links),
    "big_vision siglip": ("siglip", lambda config: big_vision.links(config, {})),
}


@pytest.mark.parametrize("table", TABLES)
def test_what_is_exported_is_imported_bit_for_bit(table, configs, variables):
    name, links = TABLES[table]
    links = links(configs[name])
    tensors = export_tensors(variables[name], links)
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())
    chex.assert_trees_all_equal(read(configs[name], links, tensors), variables[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_back_bit_for_bit(dtype, configs, variables):
    links = open_clip.links(configs["plain"])
    first = export_tensors(variables["plain"], links, dtype)
    second = export_tensors(read(configs["plain"], links, first), links, dtype)
    for name, tensor in first.items():
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor, second[name])


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_their_own_inverse_and_know_their_shapes(form):
    shape = (2, 3, 4, 5) if form == "conv" else (4, 5)
    ours = np.arange(math.prod(shape)).reshape(shape)
    theirs = FORMS[form].to_theirs(ours)
    assert theirs.shape == FORMS[form].their_shape(ours.shape)
    np.testing.assert_array_equal(FORMS[form].to_ours(theirs, ours.shape), ours)


def test_a_linear_layer_is_transposed_and_queries_keys_and_values_are_split(configs, variables):
    tensors = export_tensors(variables["plain"], huggingface.links(configs["plain"]))
    kernel = variables["plain"]["params"]["text"]["transformer"]["blocks"]["attention"]["qkv"][
        "kernel"
    ]
    value = tensors["text_model.encoder.layers.1.self_attn.v_proj.weight"]
    np.testing.assert_array_equal(value, np.asarray(kernel[1, :, 32:48]).T)


def test_rows_of_one_tensor_may_hold_several_arrays(configs, variables):
    tensors = export_tensors(variables["siglip"], huggingface.links(configs["siglip"]))
    pool = variables["siglip"]["params"]["image"]["pool"]
    together = tensors["vision_model.head.attention.in_proj_bias"]
    np.testing.assert_array_equal(together[:32], pool["query"]["bias"])
    np.testing.assert_array_equal(together[32:], pool["key_value"]["bias"])


def test_big_visions_layers_may_be_stacked(configs, variables):
    config = configs["siglip"]
    apart = export_tensors(variables["siglip"], big_vision.links(config, {}))
    scanned = {"img/Transformer/encoderblock/LayerNorm_0/scale": (),
               "txt/Encoder_0/encoderblock/LayerNorm_0/scale": ()}  # fmt: skip
    links = big_vision.links(config, scanned)
    stacked = export_tensors(variables["siglip"], links)
    name = "img/Transformer/encoderblock{}/MlpBlock_0/Dense_0/kernel"
    np.testing.assert_array_equal(stacked[name.format("")][1], apart[name.format("_1")])
    chex.assert_trees_all_equal(read(config, links, stacked), variables["siglip"])


def test_big_visions_attention_has_an_axis_for_heads(configs, variables):
    tensors = export_tensors(variables["siglip"], big_vision.links(configs["siglip"], {}))
    attention = "img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
    shapes = {name: tensors[f"{attention}/{name}"].shape for name in ("key/kernel", "key/bias")}
    assert shapes == {"key/kernel": (32, 2, 16), "key/bias": (2, 16)}
    assert tensors[f"{attention}/out/kernel"].shape == (2, 16, 32)
    blocks = variables["siglip"]["params"]["image"]["transformer"]["blocks"]
    second_head = np.asarray(blocks["attention"]["qkv"]["kernel"][1, :, 32 + 16 : 64])
    np.testing.assert_array_equal(tensors[f"{attention}/key/kernel"][:, 1], second_head)


def test_a_missing_an_extra_and_a_wrong_tensor_are_named(configs, variables):
    config, links = configs["plain"], open_clip.links(configs["plain"])
    tensors = export_tensors(variables["plain"], links)
    missing = {name: tensor for name, tensor in tensors.items() if name != "visual.proj"}
    with pytest.raises(ValueError, match=r'weights\.file has no tensor "visual\.proj"'):
        read(config, links, missing)
    with pytest.raises(ValueError, match=r"no place for: visual\.ring"):
        read(config, links, tensors | {"visual.ring": np.zeros(3)})
    wrong = tensors | {"visual.proj": np.zeros((32, 9), np.float32)}
    with pytest.raises(ValueError, match=r'"visual\.proj" has shape \(32, 9\).*\(32, 8\)'):
        read(config, links, wrong)


def test_what_is_no_weight_is_passed_over(configs, variables):
    config, links = configs["resnet"], open_clip.links(configs["resnet"])
    tensors = export_tensors(variables["resnet"], links)
    tensors |= {"visual.bn1.num_batches_tracked": np.zeros(()), "input_resolution": np.zeros(())}
    read(config, links, tensors, ignored=open_clip.is_no_weight)


def test_no_two_links_of_a_table_fill_the_same_part(configs):
    for name, links in TABLES.values():
        found = [
            (link.ours, link.layer, link.slot) if link.rows is None else (link.ours, link.rows)
            for link in links(configs[name])
        ]
        assert len(found) == len(set(found))
        assert all(isinstance(link, Link) for link in links(configs[name]))

"""Layouts and settings of the reference libraries beyond the released architectures."""

import io
import json

import jax
import numpy as np
import open_clip
import parity
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from clip_jax.data.tokenizers.registry import ClipTokenizer
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.weights.export import export
from clip_jax.weights.libraries import PREPROCESSED_APART
from clip_jax.weights.load import load_released
from clip_jax.weights.tokenizer_export import transformers_files

VISION = {"image_size": 48, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
TEXT = {"context_length": 12, "vocab_size": 99, "width": 32, "heads": 2, "layers": 2}
SMALL = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
MODELS = {
    "no projection": SMALL | {"text_cfg": TEXT | {"proj_type": "none"}},
    "a projection's bias": SMALL | {"text_cfg": TEXT | {"proj_bias": True}},
    "an end token": SMALL | {"text_cfg": TEXT | {"pool_type": "eos", "eos_id": 7}},
    "fixed positions": SMALL | {"vision_cfg": VISION | {"pos_embed_type": "sin_cos_2d"}},
    "norm after pooling": SMALL | {
        "vision_cfg": VISION | {"pool_type": "avg", "final_ln_after_pool": True}
    },
    "quick gelu": SMALL | {"quick_gelu": True},
    "tanh and epsilons": SMALL | {
        "text_cfg": TEXT | {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}}
    },
    "narrow heads of a ResNet": SMALL | {"vision_cfg": RESNET},
    "a scale of shape (1,)": SMALL | {"nonscalar_logit_scale": True, "init_logit_bias": -10.0},
}  # fmt: skip


def embeddings(model: torch.nn.Module, config, end: int | None = None):
    images_BHWC, tokens_BL = parity.inputs(config)
    tokens_BL = np.minimum(tokens_BL, config.text.vocab_size - 1)
    if end is not None:
        tokens_BL[:, 5] = end
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), True)
        text = model.encode_text(torch.from_numpy(tokens_BL).long(), True)
    return (images_BHWC, tokens_BL), (image.numpy(), text.numpy())


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_config_of_open_clip_is_honoured(name, custom, tmp_path):
    content = MODELS[name]
    torch.manual_seed(0)
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    model = kind(**content)
    parity.randomize(model)
    model.eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": content}))
    torch.save({"model": model.state_dict(), "epoch": 1}, tmp_path / "open_clip_pytorch_model.bin")
    loaded = load_released(tmp_path)
    inputs, expected = embeddings(model, loaded.model.config, content["text_cfg"].get("eos_id"))
    out = jax.jit(loaded.model.apply)(loaded.variables, *inputs)
    np.testing.assert_allclose(out.image, expected[0], atol=1e-5)
    np.testing.assert_allclose(out.text, expected[1], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "end"), [("CLIP", 98), ("CLIP", 2), ("CLIP", 7), ("MetaClip2", 2)]
)
def test_a_text_is_read_where_transformers_reads_it(kind, end, tmp_path):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    text = sizes | {"vocab_size": 99, "max_position_embeddings": 12, "eos_token_id": end}
    config_class = getattr(transformers, f"{kind}Config")
    torch.manual_seed(0)
    config = config_class(
        text_config=text,
        vision_config=sizes | {"image_size": 48, "patch_size": 16},
        projection_dim=32,
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    parity.randomize(model)
    model.save_pretrained(tmp_path / "a")
    loaded = load_released(tmp_path / "a")
    images_BHWC, tokens_BL = parity.inputs(loaded.model.config)
    tokens_BL = np.minimum(tokens_BL, 97)
    tokens_BL[:, 6] = end
    if kind == "CLIP":
        tokens_BL[:, 8] = 98  # with 2 for an end token, CLIP reads at the largest id
    export(tmp_path / "b", loaded.model.config, loaded.variables)
    again = type(model).from_pretrained(tmp_path / "b")
    out = jax.jit(loaded.model.apply)(loaded.variables, images_BHWC, tokens_BL)
    for reference in (model, again.eval()):
        with torch.no_grad():
            expected = reference(
                pixel_values=torch.from_numpy(images_BHWC).permute(0, 3, 1, 2),
                input_ids=torch.from_numpy(tokens_BL).long(),
            )
        np.testing.assert_allclose(out.image, expected.image_embeds.numpy(), atol=1e-5)
        np.testing.assert_allclose(out.text, expected.text_embeds.numpy(), atol=1e-5)


def test_sharded_bins_and_old_files_are_read(tmp_path):
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**SMALL)
    state = model.state_dict()
    config = tmp_path / "open_clip_config.json"
    config.write_text(json.dumps({"model_cfg": SMALL}))
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    first = load_released(tmp_path / "old").variables
    half = len(state) // 2
    names = list(state)
    places = {}
    for i, part in enumerate((names[:half], names[half:])):
        torch.save({name: state[name] for name in part}, tmp_path / f"pytorch_model-{i}.bin")
        places |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    second = load_released(tmp_path).variables
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        first["params"]["text"]["token_embedding"], state["token_embedding.weight"]
    )


def test_float8_and_bfloat16(tmp_path):
    model = open_clip.model.CLIP(**SMALL)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    file = tmp_path / "open_clip_model.safetensors"
    state = {name: tensor.contiguous() for name, tensor in model.bfloat16().state_dict().items()}
    save_file(state, file)
    found = load_released(tmp_path).variables["params"]["text"]["token_embedding"]
    np.testing.assert_array_equal(found, state["token_embedding.weight"].float())
    save_file(state | {"visual.proj": state["visual.proj"].to(torch.float8_e4m3fn)}, file)
    with pytest.raises(ValueError, match=r'open_clip_model\.safetensors: tensor "visual\.proj"'):
        load_released(tmp_path)


PROCESSORS = {
    "CLIP": {},
    "CLIP, larger before the crop": {"size": {"shortest_edge": 56}},
    "CLIP, squashed": {"size": {"height": 48, "width": 48}, "do_center_crop": False},
    "CLIP, not normalised": {"do_normalize": False},
    "CLIP, another factor": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
    "CLIP, bilinear": {"resample": 2},
    "Siglip": {"size": {"height": 48, "width": 48}},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_processor_gives_the_same_pixels(name, tmp_path):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    library = name.split(",")[0]
    config = getattr(transformers, f"{library}Config")(
        text_config=sizes | {"vocab_size": 99, "max_position_embeddings": 12, "eos_token_id": 98},
        vision_config=sizes | {"image_size": 48, "patch_size": 16},
    )
    getattr(transformers, f"{library}Model")(config).save_pretrained(tmp_path)
    small = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    if library == "Siglip":
        small = {}
    processor = getattr(transformers, f"{library}ImageProcessor")(**small | PROCESSORS[name])
    processor.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (13, 17, 3), np.uint8)
    # Of a margin of 3, 7, 11, ... pixels the two libraries crop another one: see docs/parity.md.
    image = Image.fromarray(pixels).resize((104, 80), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    loaded = load_released(tmp_path)
    ours = np.asarray(loaded.preprocess(file.getvalue()), float) / 255
    ours = (ours - loaded.preprocess.config.mean) / loaded.preprocess.config.std
    step = 1 / 255 / np.min(loaded.preprocess.config.std)
    assert np.abs(theirs - ours).mean() < 0.6 * step


def test_which_tags_were_preprocessed_apart_is_known():
    keys = ("mean", "std", "interpolation", "resize_mode")
    apart = {name: set() for name in PREPROCESSED_APART}
    for name, tags in open_clip.pretrained._PRETRAINED.items():
        if name in ARCHITECTURES:
            own = ARCHITECTURES[name].preprocess
            for tag, content in tags.items():
                found = {key: content[key] for key in keys if content.get(key) is not None}
                if any(getattr(own, key) != value for key, value in found.items()):
                    apart.setdefault(name.removesuffix("-quickgelu"), set()).add(tag)
    assert apart == {name: {words.split()[0]} for name, words in PREPROCESSED_APART.items()}


def test_a_directory_with_the_file_of_a_processor_alone_is_read(tmp_path):
    """transformers 5 writes the image processor into processor_config.json, and no other file."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes["intermediate_size"] = 64
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": 49_408, "max_position_embeddings": 12},
        vision_config=sizes | {"image_size": 48, "patch_size": 16},
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    for name, content in transformers_files(ClipTokenizer(12)).items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(data)
    pixels = transformers.CLIPImageProcessor(
        size={"shortest_edge": 56}, crop_size=48, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    processor = transformers.CLIPProcessor(image_processor=pixels, tokenizer=tokenizer)
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    found = load_released(tmp_path).preprocess.config
    assert (found.mean, found.std, found.resize_size) == ((0.5,) * 3, (0.25,) * 3, 56)

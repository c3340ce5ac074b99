"""Files of the reference libraries are read, and those that clip_jax writes are read by them."""

import dataclasses

import numpy as np
import open_clip
import parity
import pytest
import torch
import transformers
from parity_inputs import image_files, varied_texts
from PIL import Image
from safetensors.torch import save_file

from clip_jax.config import ModelConfig
from clip_jax.data.tokenizers.clip_bpe import canonicalize
from clip_jax.data.tokenizers.registry import ClipTokenizer
from clip_jax.models.architectures import model_config, quick
from clip_jax.models.towers.resnet import ResNetConfig
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights import open_clip_config
from clip_jax.weights.export import export
from clip_jax.weights.load import load_released

CONFIG = quick(
    ModelConfig(
        name="small",
        embed_dim=32,
        vision=VisionTransformerConfig(
            image_size=48, patch_size=16, width=64, depth=2, heads=1, mlp_width=256
        ),
        text=TextConfig(width=64, depth=2, heads=1, mlp_width=256),
    )
)
RESNET = dataclasses.replace(
    CONFIG, vision=ResNetConfig(image_size=64, width=16, depths=(1, 1, 1, 1), heads=8)
)


def reference(config: ModelConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**open_clip_config.write_config(config)["model_cfg"])
    parity.randomize(model)
    return model.eval()


def embed(model: torch.nn.Module, config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    images_BHWC, tokens_BL = parity.inputs(config)
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images_BHWC).permute(0, 3, 1, 2), True)
        text = model.encode_text(torch.from_numpy(tokens_BL).long(), True)
    return image.numpy(), text.numpy()


def check(loaded, expected: tuple[np.ndarray, np.ndarray]):
    out = loaded.model.apply(loaded.variables, *parity.inputs(loaded.model.config))
    np.testing.assert_allclose(out.image, expected[0], atol=1e-5)
    np.testing.assert_allclose(out.text, expected[1], atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, RESNET])
def test_state_dicts_training_checkpoints_and_safetensors_are_read(config, tmp_path):
    model = reference(config)
    state = model.state_dict()
    torch.save(state, tmp_path / "state.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": state[name] for name in state}}
    torch.save(wrapped | {"optimizer": {"step": torch.ones(2)}}, tmp_path / "training.pt")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "a.safetensors")  # fmt: skip
    expected = embed(model, config)
    for name in ("state.pt", "old.pt", "training.pt", "a.safetensors"):
        check(load_released(tmp_path / name, config), expected)


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("half", [False, True])
def test_a_torchscript_archive_is_read_and_known_for_openais(half, tmp_path):
    config = model_config("RN50-quickgelu")
    model = reference(config)
    model = model.half() if half else model
    numbers = torch.zeros(1, 3, 224, 224, dtype=torch.float16 if half else torch.float32)
    script = torch.jit.trace(
        model, (numbers, torch.zeros(1, 77, dtype=torch.long)), check_trace=False
    )
    script.save(tmp_path / "RN50.pt")
    loaded = load_released(tmp_path / "RN50.pt")
    assert loaded.model.config == config
    assert isinstance(loaded.tokenizer, ClipTokenizer)
    check(loaded, embed(model.float(), config))


class Malice:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle was run')",))


@pytest.mark.parametrize("new", [False, True])
def test_a_pickle_that_would_run_code_is_refused(new, tmp_path):
    torch.save(
        {"state_dict": Malice()}, tmp_path / "bad.pt", _use_new_zipfile_serialization=new
    )  # fmt: skip
    with pytest.raises(ValueError, match="refused"):
        load_released(tmp_path / "bad.pt")


@pytest.mark.parametrize("config", [CONFIG, RESNET])
def test_open_clip_reads_what_is_exported(config, tmp_path):
    model = reference(config)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    loaded = load_released(tmp_path / "state.pt", config)
    export(tmp_path / "out", config, loaded.variables, to="open_clip", tokenizer=loaded.tokenizer)
    again, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    for name, tensor in model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    assert tuple(transform.transforms[-1].mean) == config.preprocess.mean
    check(load_released(tmp_path / "out"), embed(again.eval(), config))


def test_transformers_reads_what_is_exported_with_its_processor(tmp_path):
    model = reference(CONFIG)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    loaded = load_released(tmp_path / "state.pt", CONFIG)
    export(tmp_path / "out", CONFIG, loaded.variables, tokenizer=loaded.tokenizer)
    again = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    images_BHWC, tokens_BL = parity.inputs(CONFIG)
    with torch.no_grad():
        out = again(
            pixel_values=torch.from_numpy(images_BHWC).permute(0, 3, 1, 2),
            input_ids=torch.from_numpy(tokens_BL).long(),
        )
    expected = embed(model, CONFIG)
    np.testing.assert_allclose(out.image_embeds.numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(out.text_embeds.numpy(), expected[1], atol=1e-5)
    check(load_released(tmp_path / "out"), expected)

    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    texts = ["a photo of a cat", "two dogs, running!", "x" * 300]
    ids = processor.tokenizer(texts, padding="max_length", truncation=True)["input_ids"]
    tokens_BL = loaded.tokenizer(texts)
    ends = (tokens_BL == loaded.tokenizer.end_id).argmax(axis=1)
    for row, their_row, end in zip(tokens_BL, ids, ends):
        assert row[: end + 1].tolist() == their_row[: end + 1]
    (tmp_path / "a.jpg").write_bytes(image_files()["JPEG, 640 x 480"])
    theirs = processor.image_processor(Image.open(tmp_path / "a.jpg"), return_tensors="np")
    ours = loaded.preprocess(tmp_path / "a.jpg") / 255
    ours = (ours - CONFIG.preprocess.mean) / CONFIG.preprocess.std
    assert np.abs(theirs["pixel_values"][0].transpose(1, 2, 0) - ours).mean() < 0.02


def test_transformers_reads_an_exported_siglip(tmp_path):
    base = model_config("ViT-B-16-SigLIP2", vocab_size=99, context_length=12)
    sizes = {"width": 64, "depth": 2, "heads": 2, "mlp_width": 128, "activation": "gelu_tanh"}
    config = dataclasses.replace(
        base,
        embed_dim=64,
        vision=dataclasses.replace(base.vision, image_size=32, **sizes),
        text=dataclasses.replace(base.text, **sizes),
    )
    torch.manual_seed(0)
    kind = transformers.SiglipModel
    content = parity.huggingface_config.write_config(config)
    model = kind(kind.config_class(**content)).eval()
    parity.randomize(model)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_released(tmp_path / "theirs")
    assert loaded.tokenizer is None
    assert loaded.model.config == dataclasses.replace(config, name="theirs")
    export(tmp_path / "ours", loaded.model.config, loaded.variables)
    again = kind.from_pretrained(tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    images_BHWC, tokens_BL = parity.inputs(config)
    with torch.no_grad():
        out = again.eval()(
            pixel_values=torch.from_numpy(images_BHWC).permute(0, 3, 1, 2),
            input_ids=torch.from_numpy(tokens_BL).long(),
        )
    check(loaded, (out.image_embeds.numpy(), out.text_embeds.numpy()))


def test_sharded_safetensors_of_transformers_are_read(tmp_path):
    kind = transformers.CLIPModel
    torch.manual_seed(0)
    model = kind(kind.config_class(**parity.huggingface_config.write_config(CONFIG))).eval()
    model.save_pretrained(tmp_path, max_shard_size="2MB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded = load_released(tmp_path)
    np.testing.assert_array_equal(
        loaded.variables["params"]["text"]["token_embedding"],
        model.state_dict()["text_model.embeddings.token_embedding.weight"],
    )


def test_canonical_text_is_open_clips():
    clean = open_clip.tokenizer.get_clean_fn("canonicalize")
    texts = varied_texts(2_000)
    assert [canonicalize(text) for text in texts] == [clean(text) for text in texts]

"""Token ids of released tokenizers, and of those that are exported, in transformers and open_clip."""

import dataclasses
import importlib.util
import io
import json
from pathlib import Path

import jax
import numpy as np
import open_clip
import pytest
import sentencepiece
import tokenizers as hf
import transformers
from parity_inputs import varied_texts

from clip_jax.config import ModelConfig
from clip_jax.data.tokenizers.registry import ClipTokenizer, SiglipTokenizer, train_sentencepiece
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.models.towers.vision_transformer import VisionTransformerConfig
from clip_jax.weights.export import export
from clip_jax.weights.tokenizer_export import transformers_files
from clip_jax.weights.tokenizer_files import find_tokenizer

PLAIN = ["a photo of a cat", "Two DOGS, running!", "a b  c", "x " * 60, "", "don't; stop... (now)"]
# Mended by open_clip and not by transformers, which each side is compared with its own.
MARKED = ["snake_case", "caf\u00c3\u00a9 &amp; bar", "&lt;b&gt; 50 %", *varied_texts(200)]
# An ellipsis is two pieces of one score in the small vocabulary below: either order is right.
MARKED = [text for text in MARKED if not {"\u2026", "\x85"} & set(text)]
CORPUS = [text.lower() for text in PLAIN] * 5 + [f"a {w} on the {v}" for w in "abcd" for v in "xyz"]
LENGTH = 16
SIZES = {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64}


def siglip(vocab_size: int) -> ModelConfig:
    base = model_config("ViT-B-16-SigLIP", vocab_size=vocab_size, context_length=LENGTH)
    return dataclasses.replace(
        base,
        embed_dim=32,
        vision=dataclasses.replace(base.vision, image_size=32, **SIZES),
        text=dataclasses.replace(base.text, **SIZES),
    )


def t5_model() -> bytes:
    """A SentencePiece model with T5's special pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def t5_json() -> bytes:
    """The tokenizer.json that is made of it."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=t5_model())
    ids = range(pieces.get_piece_size())
    made = hf.Tokenizer(
        hf.models.Unigram(
            [(pieces.id_to_piece(i), pieces.get_score(i)) for i in ids],
            unk_id=2,
            byte_fallback=True,
        )
    )
    made.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made.to_str().encode()


def gemma_json() -> bytes:
    """Byte pairs under Gemma's normalizer and special tokens, as SigLIP 2's tokenizer.json has them."""
    made = hf.Tokenizer(hf.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = hf.normalizers.Replace(" ", "\u2581")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = hf.trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.pre_tokenizer = hf.pre_tokenizers.Split(" ", "merged_with_previous")
    made.post_processor = hf.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return made.to_str().encode()


KINDS = {"t5 spiece": t5_model, "t5 json": t5_json, "gemma json": gemma_json}


def variables_of(config: ModelConfig) -> dict:
    size = config.vision.image_size
    images = np.zeros((1, size, size, 3), np.uint8)
    tokens = np.zeros((1, config.text.context_length), np.int32)
    shapes = jax.eval_shape(CLIP(config).init, jax.random.key(0), images, tokens)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_siglip_tokenizer_gives_the_same_ids_in_transformers(kind, tmp_path):
    ours = SiglipTokenizer(KINDS[kind](), LENGTH)
    config = siglip(ours.vocab_size)
    export(tmp_path / "a", config, variables_of(config), tokenizer=ours)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "a")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    options = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    for tokenizer in (processor.tokenizer, theirs):
        ids = tokenizer(PLAIN, **options)["input_ids"]
        np.testing.assert_array_equal(ids, ours(PLAIN))
    content = json.loads((tmp_path / "a" / "config.json").read_text())["text_config"]
    assert (content["pad_token_id"], content["eos_token_id"]) == (ours.pad_id, ours.end_id)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_siglip_tokenizer_gives_the_same_ids_in_open_clip(kind, tmp_path):
    ours = SiglipTokenizer(KINDS[kind](), LENGTH)
    base = model_config("ViT-B-16-SigLIP", vocab_size=ours.vocab_size, context_length=LENGTH)
    config = dataclasses.replace(base, text=dataclasses.replace(base.text, depth=1))
    export(tmp_path / "a", config, variables_of(config), to="open_clip", tokenizer=ours)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'a'}")
    texts = PLAIN + MARKED
    np.testing.assert_array_equal(theirs(texts).numpy(), ours(texts))
    (tmp_path / "a" / "tokenizer" / "description.json").unlink()  # as a directory of open_clip's
    read = find_tokenizer(config, tmp_path / "a", library="open_clip")
    np.testing.assert_array_equal(theirs(texts).numpy(), read(texts))


def test_a_tokenizer_that_transformers_has_not_gives_no_ids_there(tmp_path, caplog):
    """A CLIPTokenizer was made in its place, for which every word is unknown."""
    ours = train_sentencepiece(CORPUS, 400, LENGTH)
    base = model_config("ViT-B-32", vocab_size=ours.vocab_size, context_length=LENGTH)
    config = dataclasses.replace(base, text=dataclasses.replace(base.text, depth=1))
    export(tmp_path / "a", config, variables_of(config), tokenizer=ours)
    assert "transformers has no tokenizer of the kind sentencepiece" in caplog.text
    for auto in (transformers.AutoTokenizer, transformers.AutoProcessor):
        with pytest.raises((ValueError, OSError)):
            auto.from_pretrained(tmp_path / "a")(["a photo of a cat"])


def config_json(directory, text: dict):
    (directory / "config.json").write_text(
        json.dumps({"model_type": "siglip", "text_config": text})
    )


@pytest.mark.parametrize("kind", ["Siglip2Tokenizer", "PreTrainedTokenizerFast"])
def test_a_directory_of_siglip2_is_tokenized_as_transformers_does_it(kind, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(gemma_json())
    settings = {"tokenizer_class": kind, "bos_token": "<bos>", "eos_token": "<eos>",
                "pad_token": "<pad>", "unk_token": "<unk>", "padding_side": "right"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config_json(tmp_path, {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = find_tokenizer(siglip(700), tmp_path, library="huggingface")
    texts = PLAIN + MARKED
    ids = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    np.testing.assert_array_equal(ids, ours(texts))


def test_a_directory_of_siglip_is_tokenized_as_transformers_does_it(tmp_path):
    tokenizer = SiglipTokenizer(t5_model(), LENGTH)
    for name, content in transformers_files(tokenizer).items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(data)
    config_json(tmp_path, {})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = find_tokenizer(siglip(tokenizer.vocab_size), tmp_path, library="huggingface")
    texts = PLAIN + MARKED
    ids = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    np.testing.assert_array_equal(ids, ours(texts))


@pytest.mark.parametrize("as_json", [True, False])
def test_a_directory_of_clip_is_tokenized_as_transformers_does_it(as_json, tmp_path):
    config = ModelConfig(vision=VisionTransformerConfig(), text=TextConfig(context_length=LENGTH))
    for name, content in transformers_files(ClipTokenizer(LENGTH)).items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    if as_json:
        theirs.save_pretrained(tmp_path)
    ours = find_tokenizer(config, tmp_path, library="huggingface")
    texts = PLAIN + MARKED
    ids = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    np.testing.assert_array_equal(ids, ours(texts))


@pytest.mark.parametrize("part", ["CLIPVisionCfg", "CLIPTextCfg"])
def test_the_table_of_keys_is_that_of_open_clip(part):
    file = Path(__file__).parents[1] / "weights" / "test_open_clip_keys.py"
    spec = importlib.util.spec_from_file_location("test_open_clip_keys", file)
    keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(keys)
    known = {field.name for field in dataclasses.fields(getattr(open_clip.model, part))}
    assert known == set(keys.VISION if part == "CLIPVisionCfg" else keys.TEXT)

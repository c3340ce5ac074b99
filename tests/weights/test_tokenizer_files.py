"""Tokenizers come from the files beside the weights, with their own ids, padding and cleaning."""

import dataclasses
import json
import logging

import pytest
import tokenizers as hf

from clip_jax.config import ModelConfig
from clip_jax.data.tokenizers.registry import ClipTokenizer, SiglipTokenizer, TransformersTokenizer
from clip_jax.models.towers.text_transformer import TextConfig
from clip_jax.weights.tokenizer_export import open_clip_files, transformers_files
from clip_jax.weights.tokenizer_files import find_tokenizer

WORDS = ["[PAD]", "[UNK]", "a", "cat", "&amp;", "cafe", "[SEP]", "</s>", "<pad>", "A", "Cat", "&"]
LENGTH = 6


def tokenizer_json(end: str = "[SEP]", **more) -> bytes:
    ids = {word: i for i, word in enumerate(WORDS)} | more
    made = hf.Tokenizer(hf.models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    made.post_processor = hf.processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ids[end])]
    )
    return made.to_str().encode()


def config(vocab_size: int = len(WORDS), kind: str = "huggingface", **text) -> ModelConfig:
    text = TextConfig(context_length=LENGTH, vocab_size=vocab_size, **{"pool": "last"} | text)
    return ModelConfig(text=text, tokenizer=kind)


def write(directory, description=None, settings=None, text=None, library="huggingface"):
    description = tokenizer_json() if description is None else description
    (directory / "tokenizer.json").write_bytes(description)
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    name = "config.json" if library == "huggingface" else "open_clip_config.json"
    part = "text_config" if library == "huggingface" else "text_cfg"
    content = {part: text or {}}
    content = content if library == "huggingface" else {"model_cfg": content}
    (directory / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("settings", "text", "pad"),
    [
        ({"pad_token": "<pad>"}, {}, 8),
        ({"pad_token": {"content": "</s>"}}, {}, 7),
        ({}, {"pad_token_id": 5}, 5),
        ({}, {}, 8),
    ],
)
def test_padding_is_the_files_own(settings, text, pad, tmp_path):
    write(tmp_path, settings=settings, text=text)
    found = find_tokenizer(config(), tmp_path, library="huggingface")
    assert found(["a cat"]).tolist() == [[2, 3, 6, pad, pad, pad]]
    assert found(["a " * 30]).tolist() == [[2, 2, 2, 2, 2, 6]]


@pytest.mark.parametrize("token", ["[MISSING]", 3])
def test_a_pad_token_that_is_not_there_is_refused(token, tmp_path):
    write(tmp_path, settings={"pad_token": token})
    with pytest.raises(ValueError, match=r"pad_token is ('\[MISSING\]'|3)"):
        find_tokenizer(config(), tmp_path, library="huggingface")


def test_each_librarys_cleaning_stays_its_own(tmp_path):
    write(tmp_path, settings={"pad_token": "<pad>"})
    theirs = find_tokenizer(config(), tmp_path, library="huggingface")
    assert theirs(["A &amp; Cat"])[0, :3].tolist() == [9, 4, 10]
    write(tmp_path, library="open_clip")
    for clean, ids in (
        ("whitespace", [9, 11, 10]),
        ("lower", [2, 11, 3]),
        ("canonicalize", [2, 3, 6]),
    ):
        text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"clean": clean}}
        write(tmp_path, settings={"pad_token": "<pad>"}, text=text, library="open_clip")
        ours = find_tokenizer(config(), tmp_path, library="open_clip")
        assert ours(["A &amp; Cat"])[0, :3].tolist() == ids


def test_siglip2s_tokenizer_lowers_the_case(tmp_path):
    write(tmp_path, settings={"tokenizer_class": "Siglip2Tokenizer", "pad_token": "<pad>"})
    found = find_tokenizer(config(), tmp_path, library="huggingface")
    assert found(["A Cat"])[0, :2].tolist() == [2, 3]


def test_a_separator_is_stripped_as_in_open_clip(tmp_path):
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"strip_sep_token": True}}
    write(tmp_path, settings={"pad_token": "[PAD]"}, text=text, library="open_clip")
    found = find_tokenizer(config(causal=False, pool="last"), tmp_path, library="open_clip")
    assert found(["a cat"]).tolist() == [[2, 3, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "options", [{"clean": "simple"}, {"language": "en"}, {"strip_sep_token": 1}]
)
def test_other_options_of_open_clip_are_refused(options, tmp_path):
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": options}
    write(tmp_path, text=text, library="open_clip")
    with pytest.raises(ValueError, match=f"tokenizer_kwargs: {next(iter(options))}"):
        find_tokenizer(config(), tmp_path, library="open_clip")


@pytest.mark.parametrize("rows", [len(WORDS) - 1, 5])
def test_an_id_outside_of_the_embedding_table_is_refused(rows, tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=rf"ids up to {len(WORDS) - 1}.*has {rows} rows"):
        find_tokenizer(config(rows), tmp_path, library="huggingface")


def test_reserved_tokens_may_lie_outside_of_it(tmp_path):
    write(tmp_path, tokenizer_json(**{"<extra_id_0>": 12, "[unused7]": 13}))
    found = find_tokenizer(config(), tmp_path, library="huggingface")
    assert found(["a"]).max() < len(WORDS)
    with pytest.raises(ValueError, match=r"gives 'a <extra_id_0>' the id 12, .* 0 to 11"):
        found(["a <extra_id_0>"])  # for which a model would read the last row


@pytest.mark.parametrize(("end", "fits"), [("[SEP]", True), ("</s>", False)])
def test_another_end_than_the_model_reads_at_is_refused(end, fits, tmp_path):
    write(tmp_path, tokenizer_json(end))
    wanted = config(pool="eos", end_id=WORDS.index("[SEP]"))
    if fits:
        assert find_tokenizer(wanted, tmp_path, library="huggingface").end_id == 6
        return
    with pytest.raises(ValueError, match="ends a text with id 7, and the model reads it at id 6"):
        find_tokenizer(wanted, tmp_path, library="huggingface")


@pytest.mark.parametrize("end", ["[SEP]", "[PAD]"])
def test_a_model_that_reads_at_the_largest_id_needs_texts_that_end_there(end, tmp_path):
    write(tmp_path, tokenizer_json(end), settings={"pad_token": "[PAD]"})
    wanted = config(pool="argmax")
    if end == "[SEP]":
        assert find_tokenizer(wanted, tmp_path, library="huggingface").end_id == 6
        return
    with pytest.raises(ValueError, match="ends a text with id 0, and the model reads it at id 3"):
        find_tokenizer(wanted, tmp_path, library="huggingface")


UNKNOWN = json.loads(tokenizer_json())  # which fails at words that it does not know
UNKNOWN["model"]["unk_token"] = "[MISSING]"
PANIC = json.loads(tokenizer_json()) | {
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
}
FOREIGN = [
    b"version https://git-lfs.github.com/spec/v1", b"{}", b"[1]", 100_000 * b"[",
    b'{"model": {"vocab": 3}}', json.dumps(UNKNOWN).encode(), json.dumps(PANIC).encode(),
]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_tokenizer_file_is_refused(content, tmp_path):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*tokenizer\.json"):
        find_tokenizer(config(), tmp_path, library="huggingface")


def test_vocabulary_and_merges_are_the_directorys_own(tmp_path):
    files = transformers_files(ClipTokenizer(LENGTH))
    ids = dict(files["vocab.json"])
    ids["<|startoftext|>"], ids["<|endoftext|>"] = ids["<|endoftext|>"], ids["<|startoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_bytes(files["merges.txt"])
    (tmp_path / "config.json").write_text("{}")
    found = find_tokenizer(config(49_408, "clip"), tmp_path, library="huggingface")
    assert (found.start_ids, found.end_id) == ((49_407,), 49_406)
    assert found(["a cat"])[0, 1:3].tolist() == ClipTokenizer(LENGTH)(["a cat"])[0, 1:3].tolist()
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0}))
    with pytest.raises(ValueError, match=r"vocab\.json has no <\|startoftext\|>"):
        find_tokenizer(config(49_408, "clip"), tmp_path, library="huggingface")
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*utf-8"):
        find_tokenizer(config(49_408, "clip"), tmp_path, library="huggingface")
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"has vocab\.json alone"):
        find_tokenizer(config(49_408, "clip"), tmp_path, library="huggingface")


def test_openais_vocabulary_is_assumed_aloud(tmp_path, caplog):
    (tmp_path / "config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        found = find_tokenizer(config(49_408, "clip"), tmp_path, library="huggingface")
    assert isinstance(found, ClipTokenizer)
    assert "took OpenAI's vocabulary" in caplog.text
    assert find_tokenizer(config(500, "clip"), tmp_path, library="huggingface") is None


def siglip_json() -> bytes:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    made = hf.Tokenizer(hf.models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    return made.to_str().encode()


def test_an_exported_siglip_tokenizer_reads_back_with_the_same_ids(tmp_path):
    ours = SiglipTokenizer(siglip_json(), 12)
    texts = ["a cat", "A_Cat!  (two)", "", "x" * 40]
    for files, library in (
        (transformers_files(ours), "huggingface"),
        (open_clip_files(ours)[0], "open_clip"),
    ):
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        (tmp_path / "config.json").write_text("{}")
        wanted = config(ours.vocab_size, "siglip", causal=False, pool="last")
        wanted = dataclasses.replace(
            wanted, text=dataclasses.replace(wanted.text, context_length=12)
        )
        read = find_tokenizer(wanted, tmp_path, library=library)
        assert isinstance(read, TransformersTokenizer)
        assert read(texts).tolist() == ours(texts).tolist()
        assert (read.pad_id, read.end_id) == (ours.pad_id, ours.end_id)

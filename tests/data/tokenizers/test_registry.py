"""Tests of the tokenizers."""

import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece
import tokenizers as hf

from clip_jax.config import TokenizerConfig
from clip_jax.data.tokenizers.registry import (
    KINDS,
    ClipaTokenizer,
    ClipTokenizer,
    HuggingFaceTokenizer,
    SiglipTokenizer,
    SiglipTransformersTokenizer,
    TransformersTokenizer,
    load_tokenizer,
    make_tokenizer,
    train_sentencepiece,
)
from clip_jax.training.run_record import tokenizer_digest

CAPTIONS = [
    f"a {size} {color} {shape} {place}"
    for size in ("small", "large")
    for color in ("red", "green", "blue")
    for shape in ("circle", "square")
    for place in ("on the left", "on the right")
]


def sentencepiece_model(**options) -> bytes:
    """A small model with an end piece, as SigLIP's have."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=model,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **options},
    )
    return model.getvalue()


def word_tokenizer(*, with_end: bool) -> bytes:
    words = ["[PAD]", "[UNK]", "a", "red", "circle", "<end>"]
    tokenizer = hf.Tokenizer(
        hf.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    if with_end:
        tokenizer.post_processor = hf.processors.TemplateProcessing(
            single="$A <end>", special_tokens=[("<end>", 5)]
        )
    return tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def tokenizers():
    return {
        "clip": ClipTokenizer(12),
        "sentencepiece": train_sentencepiece(CAPTIONS, 400, 12),
        "siglip": SiglipTokenizer(sentencepiece_model(), 12),
        "huggingface": HuggingFaceTokenizer(word_tokenizer(with_end=True), 12),
        "clipa": ClipaTokenizer(word_tokenizer(with_end=False), 12),
        "siglip-transformers": SiglipTransformersTokenizer(sentencepiece_model(), 12),
        "transformers": TransformersTokenizer.of(word_tokenizer(with_end=True), 12, pad_id=0),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", ["truncate", "random", "block"])
def test_every_row_ends_with_the_end_token_and_then_padding(tokenizers, kind, mask):
    tokenizer = tokenizers[kind]
    texts = ["", "a red circle", "a red circle " * 30]
    tokens = tokenizer(texts, np.random.default_rng(0), mask)
    assert tokens.shape == (3, 12)
    assert tokens.dtype == np.int32
    for row in tokens:
        (last, *_) = np.flatnonzero(row == tokenizer.end_id)
        assert (row[last + 1 :] == tokenizer.pad_id).all()
    assert tokens.max() < tokenizer.vocab_size
    if kind not in ("siglip", "siglip-transformers", "clipa"):
        assert (tokens.max(axis=1) == tokenizer.end_id).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_gives_the_same_ids_when_loaded(tokenizers, kind, tmp_path):
    tokenizers[kind].save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(loaded(CAPTIONS), tokenizers[kind](CAPTIONS))
    assert loaded.vocab_size == tokenizers[kind].vocab_size
    other = load_tokenizer(tmp_path, context_length=7)
    assert other(CAPTIONS).shape[1] == 7
    assert tokenizer_digest(other) == tokenizer_digest(tokenizers[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_can_be_sent_to_another_process(kind, tokenizers):
    sent = pickle.loads(pickle.dumps(tokenizers[kind]))
    np.testing.assert_array_equal(sent(CAPTIONS), tokenizers[kind](CAPTIONS))


def test_siglips_tokenizer_json_gives_the_ids_of_its_sentencepiece_model():
    model = sentencepiece_model()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = [
        (pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())
    ]
    fast = hf.Tokenizer(hf.models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    fast.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    fast.post_processor = hf.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    from_json, from_model = SiglipTokenizer(fast.to_str().encode(), 9), SiglipTokenizer(model, 9)
    np.testing.assert_array_equal(from_json(CAPTIONS), from_model(CAPTIONS))
    assert (from_json.end_id, from_json.pad_id, from_json.vocab_size) == (
        from_model.end_id, from_model.pad_id, from_model.vocab_size
    )  # fmt: skip


def test_sentencepiece_training_is_deterministic_and_ignores_case():
    first, second = (train_sentencepiece(CAPTIONS, 400, 16) for _ in range(2))
    assert first.file() == second.file()
    np.testing.assert_array_equal(first(["A RED Circle"]), first(["a red circle"]))


def test_sentencepiece_spells_unknown_characters_in_bytes():
    tokenizer = train_sentencepiece(CAPTIONS, 400, 16)
    one, other = tokenizer(["你", "好"])
    assert (one != other).any()


def test_sentencepiece_vocabulary_stays_below_what_was_asked_for():
    for vocab_size in (290, 4096):
        assert train_sentencepiece(CAPTIONS, vocab_size, 16).vocab_size <= vocab_size
    assert train_sentencepiece(["a"], 4096, 16).vocab_size > 256


def test_siglip_ignores_case_and_punctuation_and_pads_as_its_vocabulary_was_trained():
    first = SiglipTokenizer(sentencepiece_model(), 8)
    np.testing.assert_array_equal(first(["A red_circle!"]), first(["a red circle"]))
    assert first(["a"])[0, -1] == first.end_id == 1
    second = SiglipTokenizer(sentencepiece_model(bos_id=3), 8)
    assert second(["a"])[0, -1] == 0


def test_make_tokenizer_trains_only_where_no_file_is_given(tmp_path):
    def captions():
        return iter(CAPTIONS)

    def no_captions():
        raise AssertionError("captions were read")

    trained = make_tokenizer(TokenizerConfig(), "sentencepiece", 16, captions)
    (tmp_path / "model").write_bytes(trained.file()[1])
    given = TokenizerConfig(path=str(tmp_path / "model"))
    read = make_tokenizer(given, "sentencepiece", 16, no_captions)
    np.testing.assert_array_equal(read(CAPTIONS), trained(CAPTIONS))
    assert make_tokenizer(TokenizerConfig(), "clip", 77, no_captions).kind == "clip"
    forced = TokenizerConfig(kind="clip")
    assert make_tokenizer(forced, "sentencepiece", 77, no_captions).kind == "clip"
    trained.save(tmp_path / "saved")
    saved = TokenizerConfig(path=str(tmp_path / "saved"))
    assert make_tokenizer(saved, "siglip", 9, no_captions).context_length == 9


@pytest.mark.parametrize("kind", ["siglip", "huggingface"])
def test_a_kind_that_needs_a_file_says_so(kind):
    with pytest.raises(ValueError, match=r"tokenizer\.path"):
        make_tokenizer(TokenizerConfig(), kind, 16, lambda: CAPTIONS)


@pytest.mark.parametrize("kind", ["sentencepiece", "siglip", "huggingface"])
def test_a_foreign_tokenizer_file_is_refused(kind, tmp_path):
    (tmp_path / "file").write_bytes(b"\x00 no tokenizer")
    cfg = TokenizerConfig(kind=kind, path=str(tmp_path / "file"))
    with pytest.raises(ValueError, match="this is no"):
        make_tokenizer(cfg, kind, 16, lambda: CAPTIONS)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no caption"):
        train_sentencepiece([], 400, 16)
    with pytest.raises(ValueError, match="vocab_size=30"):
        train_sentencepiece(CAPTIONS, 30, 16)
    with pytest.raises(ValueError, match="context_length=2"):
        ClipTokenizer(2)
    with pytest.raises(ValueError, match="list of texts"):
        ClipTokenizer(8)("a red circle")
    with pytest.raises(ValueError, match="no end-of-sentence"):
        SiglipTokenizer(sentencepiece_model(eos_id=-1))
    with pytest.raises(FileNotFoundError, match=r"description\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "description.json").write_text(json.dumps({"kind": "morse"}))
    with pytest.raises(ValueError, match="morse"):
        load_tokenizer(tmp_path)
    for spoilt, why in {
        "": "is not JSON",
        "3": "no known kind",
        '{"kind": "clip"}': "no file",
    }.items():
        (tmp_path / "description.json").write_text(spoilt)
        with pytest.raises(ValueError, match=rf"description\.json .*{why}"):
            load_tokenizer(tmp_path)


def test_a_kind_that_makes_no_tokenizer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"kind=builtins:complex made a complex: .* subclass of"):
        make_tokenizer(TokenizerConfig(kind="builtins:complex"), "clip", 8, lambda: [])


def test_a_file_that_clips_own_tokenizer_would_not_read_is_refused():
    cfg = TokenizerConfig(path="spiece.model")
    with pytest.raises(ValueError, match=r"tokenizer.path=spiece.model .* tokenizer.kind"):
        make_tokenizer(cfg, "clip", 77, list)


def test_a_foreign_tokenizer_without_an_end_token_gets_one():
    own = HuggingFaceTokenizer(word_tokenizer(with_end=True), 6)
    added = HuggingFaceTokenizer(word_tokenizer(with_end=False), 6)
    assert own(["a red circle"]).tolist() == [[2, 3, 4, 5, 0, 0]]
    assert added(["a red circle"]).tolist() == [[2, 3, 4, 6, 0, 0]]
    assert (own.vocab_size, added.vocab_size) == (6, 7)


def test_clipa_has_no_end_token():
    tokenizer = ClipaTokenizer(word_tokenizer(with_end=False), 6)
    assert tokenizer(["a red circle"]).tolist() == [[2, 3, 4, 0, 0, 0]]
    assert tokenizer(["a red circle a red circle"]).tolist() == [[2, 3, 4, 2, 3, 0]]
    assert tokenizer.vocab_size == 6


def test_what_stands_before_a_text_is_no_end_token():
    tokenizer = hf.Tokenizer.from_str(word_tokenizer(with_end=False).decode())
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single="[UNK] $A [PAD]", special_tokens=[("[UNK]", 1), ("[PAD]", 0)]
    )
    start = HuggingFaceTokenizer(tokenizer.to_str().encode(), 6)
    assert start(["a red"]).tolist() == [[1, 2, 3, 6, 0, 0]]


@pytest.mark.parametrize("kind", ["clip", "sentencepiece", "siglip", "huggingface"])
def test_half_a_surrogate_pair_is_passed_over_and_what_is_no_text_refused(kind):
    made = {
        "clip": lambda: ClipTokenizer(16),
        "sentencepiece": lambda: train_sentencepiece(CAPTIONS, 300, 16),
        "siglip": lambda: SiglipTokenizer(sentencepiece_model(), 16),
        "huggingface": lambda: HuggingFaceTokenizer(word_tokenizer(with_end=True), 16),
    }[kind]()
    np.testing.assert_array_equal(made(["a red\ud83d circle"]), made(["a red circle"]))
    for text in (None, 3, b"a red circle", float("nan")):
        with pytest.raises(ValueError, match=rf"text 1 is {type(text).__name__}, and a tokenizer"):
            made(["a", text])

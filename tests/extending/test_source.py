"""What a source from outside the tree may leave out, and names that are not there."""

import pytest

from clip_jax.config import DataConfig, TokenizerConfig
from clip_jax.data.sources.registry import open_source
from clip_jax.data.tokenizers.registry import make_tokenizer


def test_what_a_source_from_outside_leaves_out_is_filled_in():
    source = open_source("outside.source:Colors:3", "train", DataConfig())
    other = open_source("outside.source:Colors:4", "train", DataConfig())
    assert source.name == "outside.source:Colors:3" and source.classes is None
    assert source.fingerprint != other.fingerprint


def test_a_name_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"outside\.source has no attribute 'Color'; the nearest is 'Colors'"):  # fmt: skip
        open_source("outside.source:Color:3", "train", DataConfig())
    with pytest.raises(ValueError, match=r"tokenizer\.kind='sentencepeice' .*nearest is 'sentencepiece'"):  # fmt: skip
        make_tokenizer(TokenizerConfig(kind="sentencepeice"), "clip", 8, lambda: [])

"""A tiny model with CLIP's tokenizer, and the data of tasks."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from clip_jax.data.tokenizers.clip_bpe import ClipTokenizer
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.weights.load import Loaded, preprocess_of

sys.path.insert(0, str(Path(__file__).parent))
import stand_ins


def make_loaded(seed: int = 0) -> Loaded:
    """A model with random weights."""
    config = model_config("ViT-test")
    text = dataclasses.replace(config.text, vocab_size=49_408, context_length=16)
    config = dataclasses.replace(config, text=text, tokenizer="clip")
    model = CLIP(config)
    images, tokens = np.zeros((1, 16, 16, 3), np.uint8), np.ones((1, 16), np.int32)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(seed), images, tokens))
    return Loaded(model, variables, ClipTokenizer(context_length=16), preprocess_of(config))


@pytest.fixture(scope="session")
def loaded():
    return make_loaded()


@pytest.fixture(scope="session")
def other_loaded():
    return make_loaded(1)


@pytest.fixture(scope="session")
def datacomp_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datacomp")
    stand_ins.datacomp(root)
    return root

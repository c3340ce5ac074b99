"""Settings: frozen, all with a reason to read, and refused where they cannot be meant."""

import ast
import dataclasses
import inspect
import math
import subprocess
import sys

import pytest

from clip_jax import config
from clip_jax.config import (
    ModelConfig,
    ResNetConfig,
    TextConfig,
    TrainConfig,
    VisionTransformerConfig,
)

GROUPS = [kind for kind in vars(config).values() if dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("kind", GROUPS, ids=lambda kind: kind.__name__)
def test_settings_are_frozen_documented_and_have_defaults(kind):
    made = kind()
    assert kind.__doc__ and not kind.__doc__.startswith(kind.__name__)
    field = dataclasses.fields(kind)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, field.name, None)
    assert hash(made) == hash(kind())  # a model is an argument of jitted functions


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (VisionTransformerConfig, {"patch_size": 0}, "patch_size=0"),
        (VisionTransformerConfig, {"patch_size": 225}, "patch_size=225 must be from 1 to 224"),
        (VisionTransformerConfig, {"heads": 7}, "width=768 must be a multiple of heads=7"),
        (VisionTransformerConfig, {"heads": 0}, "heads=0"),
        (VisionTransformerConfig, {"class_token": False}, 'pool="class" needs class_token=True'),
        (VisionTransformerConfig, {"patch_dropout": 1.0}, "patch_dropout=1.0"),
        (TextConfig, {"width": 100}, "width=100 must be a multiple of heads=8"),
        (ResNetConfig, {"image_size": 100}, "image_size=100 must be a multiple of the stride=32"),
        (ResNetConfig, {"heads": 3}, "heads=3"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_what_is_left_of_a_last_patch_is_cropped():
    assert VisionTransformerConfig(image_size=384, patch_size=14).grid == 27
    assert VisionTransformerConfig().grid == 7


def test_the_defaults_are_open_clips_recipe():
    optimizer, model = TrainConfig().optimizer, ModelConfig()
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.98, 1e-6)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (5e-4, 0.2)
    assert model.init_logit_scale == pytest.approx(math.log(1 / 0.07))
    assert TrainConfig().loss.max_logit_scale == 100
    assert TrainConfig().data.augment.crop_scale == (0.9, 1.0)
    assert (model.text.vocab_size, model.text.context_length) == (49_408, 77)


def test_settings_need_the_standard_library_alone():
    tree = ast.parse(inspect.getsource(config))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= set(sys.stdlib_module_names)


def test_the_help_of_the_command_says_what_each_setting_means():
    code = "from clip_jax.cli.main import main; main(['train', '--help'])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for words in ("--optimizer.warmup-steps", "not on gains, biases", "pairs, over all devices"):
        assert words in " ".join(shown.stdout.replace("│", " ").split())

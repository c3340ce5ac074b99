"""Settings: frozen, all with a reason to read, and refused where they cannot be meant."""

import ast
import dataclasses
import inspect
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest

from clip_jax import config, registry
from clip_jax.config import (
    AugmentConfig,
    HealthConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    ModelSettings,
    OptimizerConfig,
    ResNetConfig,
    TextConfig,
    TrainConfig,
    VisionTransformerConfig,
)
from clip_jax.registry import Bounds, InvalidSetting, Settings, hints


def groups_of(kind: type[Settings] = Settings) -> Iterator[type[Settings]]:
    """Every group of settings of the package, those of the towers too."""
    for child in kind.__subclasses__():
        if child.__module__.startswith(
            ("clip_jax.config", "clip_jax.models")
        ) and not inspect.isabstract(child):
            yield child
        yield from groups_of(child)


GROUPS = list(groups_of())
NUMBERS = (int, float)
# What these tests do to a number of a tuple they do to all of its numbers.
ABSURD = (math.nan, math.inf, -math.inf, -1e30, -(10**30))


def numbers(kind: Any) -> Iterator[Any]:
    """The numbers of a setting's type, with their bounds: Annotated, int or float."""
    if get_origin(kind) is Annotated or kind in NUMBERS:
        yield kind
    else:
        for part in get_args(kind):
            yield from numbers(part)


def filled(kind: Any, number: float) -> Any:
    """A setting of this type whose numbers are all `number`."""
    for part in (kind, *get_args(kind)):
        if get_origin(part) is tuple:
            parts = [p for p in get_args(part) if p is not Ellipsis]
            return tuple(number for _ in parts)
    return number


NUMERIC = {
    f"{group.__name__}.{name}": (group, name, kind)
    for group in GROUPS
    for name, kind in hints(group).items()
    if any(numbers(kind))
}


@pytest.mark.parametrize("setting", NUMERIC)
def test_an_absurd_number_is_refused_by_the_full_name_of_its_setting(setting):
    group, name, kind = NUMERIC[setting]
    bounds = [each for part in numbers(kind) for each in get_args(part) if isinstance(each, Bounds)]
    assert bounds, f"{setting} has no bounds: give it some, or Bounds(why=...)"
    absurd = list(ABSURD)
    for each in bounds:
        assert math.isfinite(each.least) or each.why, f"{setting} has no lower end and no reason"
        absurd += [10 * each.most] if math.isfinite(each.most) else []
        absurd += [each.least] if each.above else []
    for value in absurd:
        if all(each.hold(value) for each in bounds) and math.isfinite(value):
            assert all(each.why for each in bounds)
            continue
        with pytest.raises(InvalidSetting, match=rf"^{re.escape(group.group + name)}=.* must be"):
            group(**{name: filled(kind, value)})


@pytest.mark.parametrize("setting", NUMERIC)
def test_a_number_is_no_text_and_no_truth_value(setting):
    group, name, kind = NUMERIC[setting]
    for value in ("1", True):
        with pytest.raises(InvalidSetting, match=re.escape(f"{group.group}{name}=")):
            group(**{name: filled(kind, value)})


def test_the_groups_of_a_run_have_the_names_that_the_command_has():
    for name, kind in hints(TrainConfig).items():
        if isinstance(kind, type) and issubclass(kind, Settings):
            assert kind.group == f"{name}."
    assert AugmentConfig.group == "data.augment."


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (OptimizerConfig, {"b2": 1.5}, "optimizer.b2=1.5 must be a number at least 0 and below 1"),
        (TrainConfig, {"workdir": ""}, "workdir='' must be text, not empty"),
        (TrainConfig, {"data": None}, "data=None must be DataConfig"),
        (LossConfig, {"tile": 2, "distributed": "replicated"}, "loss.tile=2 needs loss.distrib"),
        (AugmentConfig, {"crop_scale": (1.0, 0.5)}, "crop_scale=.1.0, 0.5. must be the smallest"),
        (LoggingConfig, {"profile_steps": (3, 2)}, "logging.profile_steps=.3, 2. must be the fir"),
        (OptimizerConfig, {"final_learning_rate": 1.0}, "final_learning_rate=1.0 must be at most"),
        (ModelSettings, {"freeze": "both"}, "model.freeze='both' must be one of 'none', 'image'"),
    ],
)
def test_an_error_says_what_is_allowed(kind, settings, message):
    with pytest.raises(InvalidSetting, match=message):
        kind(**settings)


CONSTANT = {"final_learning_rate": 1e-5}


@pytest.mark.parametrize(
    ("kind", "settings", "setting", "by"),
    [
        (OptimizerConfig, {"schedule": "constant"} | CONSTANT, "final_learning_rate=1e-05", "sch"),
        (OptimizerConfig, {"schedule": "rsqrt"} | CONSTANT, "final_learning_rate=1e-05", "sched"),
        (ModelSettings, {"patch_dropout": 0.5, "freeze": "image"}, "patch_dropout=0.5", "freeze"),
        (ModelSettings, {"unlocked_blocks": 1}, "model.unlocked_blocks=1", "model.freeze=none"),
        (ModelSettings, {"init_towers": "image"}, "model.init_towers='image'", "model.init_from"),
        (AugmentConfig, {"color_jitter_prob": 0.5}, "color_jitter_prob=0.5", "color_jitter is"),
        (HealthConfig, {"spike_warmup_steps": 5}, "spike_warmup_steps=5", "health.spike_factor"),
    ],
)
def test_a_setting_without_an_effect_is_refused_with_what_takes_it_away(
    kind, settings, setting, by
):
    with pytest.raises(InvalidSetting, match=f"{re.escape(setting)} has no effect, as .*{by}"):
        kind(**settings)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (OptimizerConfig, CONSTANT),
        (OptimizerConfig, {"schedule": "rsqrt", "cooldown_steps": 10} | CONSTANT),
        (ModelSettings, {"patch_dropout": 0.5, "freeze": "text", "init_from": "x"}),
        (ModelSettings, {"init_towers": "image", "init_from": "x"}),
        (AugmentConfig, {"color_jitter_prob": 0.5, "color_jitter": (0.3, 0.3, 0.3, 0.1)}),
        (HealthConfig, {"spike_warmup_steps": 5, "spike_factor": 2.0}),
    ],
)
def test_what_has_an_effect_is_taken(kind, settings):
    kind(**settings)


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
        (VisionTransformerConfig, {"class_token": False}, "pool='class' needs class_token=True"),
        (VisionTransformerConfig, {"patch_dropout": 1.0}, "patch_dropout=1.0"),
        (TextConfig, {"width": 100}, "width=100 must be a multiple of heads=8"),
        (ResNetConfig, {"image_size": 100}, "image_size=100 must be a multiple of 32"),
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
    tree = ast.parse(inspect.getsource(config) + inspect.getsource(registry))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported = {name.removeprefix("collections.") for name in imported}
    imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imported <= {*sys.stdlib_module_names, "clip_jax.registry", "clip_jax.models.tower"}


def test_the_help_of_the_command_says_what_each_setting_means():
    code = "from clip_jax.cli.main import main; main(['train', '--help'])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for words in ("--optimizer.warmup-steps", "not on gains, biases", "pairs, over all devices"):
        assert words in " ".join(shown.stdout.replace("│", " ").split())

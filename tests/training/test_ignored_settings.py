"""A changed setting has an effect or is refused."""

import re

import pytest

from clip_jax.config import (
    AugmentConfig,
    DataConfig,
    HealthConfig,
    ModelSettings,
    OptimizerConfig,
    TrainConfig,
)
from clip_jax.training.ignored_settings import refuse_ignored

FROZEN = {"freeze": "image", "init_from": "x"}


def optimizer(**settings) -> TrainConfig:
    return TrainConfig(optimizer=OptimizerConfig(**settings))


def model(**settings) -> TrainConfig:
    return TrainConfig(model=ModelSettings(**settings))


def augment(**settings) -> TrainConfig:
    return TrainConfig(data=DataConfig(augment=AugmentConfig(**settings)))


@pytest.mark.parametrize(
    ("cfg", "setting", "by"),
    [
        (
            optimizer(schedule="constant", final_learning_rate=1e-5),
            "optimizer.final_learning_rate=1e-05",
            "optimizer.schedule=constant",
        ),
        (
            optimizer(schedule="rsqrt", final_learning_rate=1e-5),
            "optimizer.final_learning_rate=1e-05",
            "optimizer.schedule=rsqrt",
        ),
        (model(name="RN50", patch_dropout=0.5), "model.patch_dropout=0.5", "model.name=RN50"),
        (model(patch_dropout=0.5, **FROZEN), "model.patch_dropout=0.5", "model.freeze=image"),
        (model(unlocked_blocks=1), "model.unlocked_blocks=1", "model.freeze=none"),
        (model(init_towers="image"), "model.init_towers=image", "model.init_from"),
        (
            augment(color_jitter_prob=0.5),
            "data.augment.color_jitter_prob=0.5",
            "data.augment.color_jitter",
        ),
        (
            TrainConfig(health=HealthConfig(spike_warmup_steps=5)),
            "health.spike_warmup_steps=5",
            "health.spike_factor",
        ),
    ],
)
def test_a_setting_without_an_effect_is_refused_with_what_takes_it_away(cfg, setting, by):
    with pytest.raises(ValueError, match=f"{re.escape(setting)} has no effect, as .*{by}"):
        refuse_ignored(cfg)


@pytest.mark.parametrize(
    "cfg",
    [
        TrainConfig(),
        optimizer(final_learning_rate=1e-5),
        optimizer(schedule="rsqrt", cooldown_steps=10, final_learning_rate=1e-5),
        model(name="RN50"),
        model(patch_dropout=0.5, freeze="text", init_from="x"),
        model(init_towers="image", init_from="x"),
        augment(color_jitter_prob=0.5, color_jitter=(0.3, 0.3, 0.3, 0.1)),
    ],
)
def test_defaults_and_what_has_an_effect_are_taken(cfg):
    refuse_ignored(cfg)

"""Settings that a run would ignore: changed from their defaults, they are refused by name."""

import functools

from clip_jax.config import TrainConfig
from clip_jax.models.architectures import model_config


def refuse_ignored(cfg: TrainConfig):
    """Raise a ValueError that names a changed setting without an effect, and what takes it away."""
    model, optimizer = cfg.model, cfg.optimizer
    no_patches = "patch_dropout" not in model_config(model.name).vision.fields()
    ends_high = optimizer.schedule in ("constant", "rsqrt") and optimizer.cooldown_steps == 0
    no_weights, no_jitter = model.init_from is None, cfg.data.augment.color_jitter is None
    spikes_pass = cfg.health.spike_factor is None
    default = TrainConfig()
    for name, is_ignored, why in (
        (
            "optimizer.final_learning_rate",
            ends_high,
            f"optimizer.schedule={optimizer.schedule} gets there by optimizer.cooldown_steps alone",
        ),
        ("optimizer.b2", optimizer.name == "adafactor", "optimizer.name=adafactor has none"),
        (
            "optimizer.eps",
            optimizer.name in ("adafactor", "lion"),
            f"optimizer.name={optimizer.name} has none",
        ),
        ("model.patch_dropout", no_patches, f"model.name={model.name} has no patches"),
        ("model.patch_dropout", model.freeze == "image", "model.freeze=image trains no patches"),
        ("model.unlocked_blocks", model.freeze == "none", "model.freeze=none trains all"),
        ("model.init_towers", no_weights, "model.init_from names no weights"),
        ("data.augment.color_jitter_prob", no_jitter, "data.augment.color_jitter is None"),
        ("health.spike_warmup_steps", spikes_pass, "health.spike_factor is None"),
    ):
        value, usual = (functools.reduce(getattr, name.split("."), c) for c in (cfg, default))
        if is_ignored and value != usual:
            raise ValueError(f"{name}={value} has no effect, as {why}: leave it at {usual}")

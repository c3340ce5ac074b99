"""The update rule by name, its learning-rate schedule, and what is decayed."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.config import OptimizerConfig
from clip_jax.sharding import path_name


def make_schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of step 0, 1, ...: a linear warm-up, then the named way down.

    Step k of a warm-up over w steps has the rate peak * (k + 1) / w, as open_clip's has.

    Raises:
      ValueError: when warm-up and cool-down do not fit into the steps, or the cool-down does not
        fit the schedule.
    """
    if cfg.cooldown_steps and cfg.schedule in ("cosine", "linear"):
        raise ValueError(
            f"optimizer.cooldown_steps={cfg.cooldown_steps} has nothing left to cool, as "
            f"optimizer.schedule={cfg.schedule} ends at the final rate by itself: set the steps to "
            "0, or the schedule to constant or rsqrt"
        )
    if cfg.warmup_steps + cfg.cooldown_steps > steps:
        raise ValueError(
            f"optimizer.warmup_steps={cfg.warmup_steps} and optimizer.cooldown_steps="
            f"{cfg.cooldown_steps} do not fit into steps={steps}: lower them or train longer"
        )
    peak, final, warmup = cfg.learning_rate, cfg.final_learning_rate, max(cfg.warmup_steps, 1)
    main_steps = max(steps - cfg.cooldown_steps - cfg.warmup_steps, 1)

    def main(step):
        done = jnp.clip((step - cfg.warmup_steps) / main_steps, 0.0, 1.0)
        if cfg.schedule == "cosine":
            return final + (peak - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        if cfg.schedule == "linear":
            return peak + (final - peak) * done
        if cfg.schedule == "rsqrt":
            return peak * jnp.sqrt(warmup / jnp.maximum(step + 1, warmup))
        return jnp.full_like(done, peak)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        cooldown_start = steps - cfg.cooldown_steps
        rate = jnp.where(step < cfg.warmup_steps, peak * (step + 1) / warmup, main(step))
        if cfg.cooldown_steps:
            left = jnp.clip((steps - step) / cfg.cooldown_steps, 0.0, 1.0)
            cooled = final + (main(cooldown_start) - final) * left
            rate = jnp.where(step < cooldown_start, rate, cooled)
        return rate

    return schedule


def is_decayed(name: str) -> bool:
    """Matrices and token embeddings are; gains, biases, positions and the temperature are not."""
    return bool(re.search(r"(kernel|token_embedding)$", name))


def decay_mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(path_name(path)), params)


def make_optimizer(
    cfg: OptimizerConfig, steps: int, *, depths: dict[str, int] | None = None
) -> optax.GradientTransformation:
    """The chain of transformations that turns gradients into updates.

    Args:
      cfg: the settings.
      steps: the length of the run, on which the schedule depends.
      depths: the number of blocks of each tower, which `layer_decay` needs.
    """
    chain = []
    if cfg.clip_norm is not None:
        chain.append(optax.clip_by_global_norm(cfg.clip_norm))
    chain.append(UPDATE_RULES[cfg.name](cfg))
    if cfg.weight_decay:
        chain.append(optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask))
    if cfg.layer_decay is not None:
        chain.append(scale_by_layer(cfg.layer_decay, depths or {}))
    chain.append(optax.scale_by_learning_rate(make_schedule(cfg, steps)))
    return optax.chain(*chain)


def _adam(cfg: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=jnp.dtype(cfg.moment_dtype))


def _lion(cfg: OptimizerConfig) -> optax.GradientTransformation:
    return optax.scale_by_lion(cfg.b1, cfg.b2, mu_dtype=jnp.dtype(cfg.moment_dtype))


def _adafactor(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """Factored second moments with momentum, as big_vision trains (arXiv:1804.04235)."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.ema(cfg.b1, debias=False, accumulator_dtype=jnp.dtype(cfg.moment_dtype)),
    )


def _muon(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """Orthogonalised momentum for the blocks' matrices, Adam for all else.

    Updates are scaled to the size that Adam's have, so that one learning rate and one weight
    decay serve both (arXiv:2502.16982, section 2.2).
    """

    def label(path, _):
        name = path_name(path)
        return "muon" if re.search(r"blocks/.*kernel$", name) else "adam"

    return optax.partition(
        {
            "muon": optax.chain(
                optax.contrib.scale_by_muon(
                    beta=cfg.b1,
                    mu_dtype=jnp.dtype(cfg.moment_dtype),
                    weight_dimension_numbers=_matrix_axes,
                ),
                optax.stateless(_scale_like_adam),
            ),
            "adam": _adam(cfg),
        },
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def _matrix_axes(params: Any) -> Any:
    """Stacked kernels are (depth, inputs, outputs); depth is a batch axis."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers((1,), (2,)), params)


def _scale_like_adam(updates: Any, params: Any = None) -> Any:
    """Orthogonal matrices (I, O) have entries of size max(I, O)^-0.5; Adam's updates are near 0.2."""
    del params

    def scale(update, axes):
        sides = (math.prod(update.shape[i] for i in side) for side in axes)
        return 0.2 * max(sides) ** 0.5 * update

    return jax.tree.map(scale, updates, _matrix_axes(updates))


UPDATE_RULES = {"adamw": _adam, "lion": _lion, "adafactor": _adafactor, "muon": _muon}


def scale_by_layer(decay: float, depths: dict[str, int]) -> optax.GradientTransformation:
    """The learning rate shrinks by `decay` a layer from a tower's top to its embeddings (BEiT)."""

    def factor(path, leaf):
        name = path_name(path)
        depth = depths.get(name.split("/", maxsplit=1)[0], 0)
        if "/blocks/" in name:
            # Block i of d has d - i layers above it, the head being one. A tower that is frozen
            # up to some block has the last ones alone here.
            powers = jnp.arange(leaf.shape[0], 0, -1, dtype=jnp.float32)
            return (decay**powers).reshape(-1, *[1] * (leaf.ndim - 1))
        # CLIP's first norm stands between the embeddings and the blocks.
        below = "embedding" in name or "pre_norm" in name
        return decay ** (depth + 1) if below else 1.0

    def update(updates, params=None):
        del params
        factors = jax.tree_util.tree_map_with_path(factor, updates)
        return jax.tree.map(jnp.multiply, updates, factors)

    return optax.stateless(update)

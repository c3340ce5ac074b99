"""The optimizer by name, its learning-rate schedule, and what is decayed."""

import ast
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax.config import OptimizerConfig
from clip_jax.models.freezing import stacked_blocks
from clip_jax.models.tower import Tower
from clip_jax.registry import resolve
from clip_jax.sharding import path_name
from clip_jax.training.muon import muon

# The arguments, in the spellings of optax, that settings of the same meaning fill.
ARGUMENTS = {
    "b1": ("b1",),
    "b2": ("b2",),
    "eps": ("eps",),
    "weight_decay": ("weight_decay", "weight_decay_rate"),
    "moment_dtype": ("moment_dtype", "mu_dtype", "accumulator_dtype", "dtype_momentum"),
}
MASKS = ("mask", "weight_decay_mask")
DECAYED = r"(kernel|token_embedding)$"
# Arguments that the run fills.
RUNS = ("learning_rate", "towers")


def make_schedule(cfg: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of step 0, 1, ...: a linear warm-up, then the named way down.

    Step k of a warm-up over w steps has the rate peak * (k + 1) / w, as open_clip's has. The rate
    of a Python number is computed on the host, which then waits for no device.

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

    def main(step, xp):
        done = xp.clip((step - cfg.warmup_steps) / main_steps, 0.0, 1.0)
        if cfg.schedule == "cosine":
            return final + (peak - final) * 0.5 * (1 + xp.cos(xp.pi * done))
        if cfg.schedule == "linear":
            return peak + (final - peak) * done
        if cfg.schedule == "rsqrt":
            return peak * xp.sqrt(warmup / xp.maximum(step + 1, warmup))
        return xp.full_like(done, peak)

    def schedule(step):
        xp = jnp if isinstance(step, jax.Array) else np
        step = xp.asarray(step, np.float32)
        cooldown_start = steps - cfg.cooldown_steps
        rate = xp.where(step < cfg.warmup_steps, peak * (step + 1) / warmup, main(step, xp))
        if cfg.cooldown_steps:
            left = xp.clip((steps - step) / cfg.cooldown_steps, 0.0, 1.0)
            cooled = final + (main(cooldown_start, xp) - final) * left
            rate = xp.where(step < cooldown_start, rate, cooled)
        return rate

    return schedule


def is_decayed(name: str, *, positions: bool = False) -> bool:
    """Matrices and token embeddings are; gains, biases and the temperature are not.

    Position embeddings are where `positions` says so: open_clip decays whatever has two axes,
    big_vision kernels alone.
    """
    return bool(re.search(DECAYED + r"|position_embedding$" * positions, name))


def decay_mask(params: Any, *, positions: bool = False) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: is_decayed(path_name(path), positions=positions), params
    )


def make_optimizer(
    cfg: OptimizerConfig, steps: int, *, towers: Mapping[str, Tower] | None = None
) -> optax.GradientTransformation:
    """The chain of transformations that turns gradients into updates.

    A function that takes a `learning_rate` is a whole optimizer, as those of optax are. The others
    give a direction; weight decay that is scaled by the learning rate alone, and the rate itself,
    follow it. Norms that an optimizer computes of a parameter, as LAMB does, are of all blocks of a
    tower together, which are stacked in one array.

    Args:
      cfg: the settings.
      steps: the length of the run, on which the schedule depends.
      towers: which `layer_decay` and Muon need, by the names of their parameters.

    Raises:
      ValueError: there is no such optimizer, it does not use a setting that was changed, or needs
        more than gradients and parameters.
    """
    function, given = named_optimizer(cfg)
    schedule = make_schedule(cfg, steps)
    run = {"learning_rate": schedule, "towers": towers or {}}
    names = inspect.signature(function).parameters
    complete = "learning_rate" in names
    rule = _made(cfg, function, given | {name: run[name] for name in RUNS if name in names})
    chain = [] if cfg.clip_norm is None else [optax.clip_by_global_norm(cfg.clip_norm)]
    chain.append(rule)
    if cfg.weight_decay and not complete:
        mask = functools.partial(decay_mask, positions=cfg.decay_positions)
        chain.append(optax.add_decayed_weights(cfg.weight_decay, mask=mask))
    if cfg.layer_decay is not None:
        chain.append(scale_by_layer(cfg.layer_decay, towers or {}))
    if not complete:
        chain.append(optax.scale_by_learning_rate(schedule))
    return optax.chain(*chain)


def named_optimizer(cfg: OptimizerConfig) -> tuple[Callable, dict[str, Any]]:
    """The function that `optimizer.name` names, and what it is given. No device is touched.

    Raises:
      ValueError: see `make_optimizer`.
    """
    if cfg.ema_decay is None and not cfg.ema_warmup:
        raise ValueError(
            "optimizer.ema_warmup=False has no effect, as optimizer.ema_decay is None: leave it at "
            "True"
        )
    function = resolve("optimizer.name", cfg.name, {**OPTAX, **DIRECTIONS})
    if not callable(function):
        raise ValueError(f"optimizer.name={cfg.name} is a {type(function).__name__}, no function")
    return function, _arguments(cfg, function)


def _arguments(cfg: OptimizerConfig, function: Callable) -> dict[str, Any]:
    """The settings that a function has arguments for, and the further ones of `optimizer.options`.

    Raises:
      ValueError: a setting was changed that it does not use, or an option that it does not have.
    """
    names = inspect.signature(function).parameters
    mask = functools.partial(decay_mask, positions=cfg.decay_positions)
    given = {name: mask for name in MASKS if name in names}
    for setting, spellings in ARGUMENTS.items():
        value, usual = getattr(cfg, setting), getattr(OptimizerConfig(), setting)
        used = [name for name in spellings if name in names]
        if used:
            given[used[0]] = jnp.dtype(value) if setting == "moment_dtype" else value
        elif value != usual and (setting != "weight_decay" or "learning_rate" in names):
            raise ValueError(
                f"optimizer.{setting}={value} has no effect, as optimizer.name={cfg.name} has no "
                f"such argument: leave it at {usual}"
            )
    for entry in cfg.options:
        name, equals, text = entry.partition("=")
        if not equals or name not in names or name in (*given, *RUNS):
            free = [other for other in names if other not in (*given, *RUNS)]
            raise ValueError(
                f"optimizer.options has {entry!r}: write NAME=VALUE, and for optimizer.name="
                f"{cfg.name} the name is one of {', '.join(free) or 'none'}"
            )
        given[name] = _value(entry, text)
    return given


def _value(entry: str, text: str) -> Any:
    """A number, a truth value or a word."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"optimizer.options has {entry!r}, which is no Python value") from error


def _made(cfg: OptimizerConfig, function: Callable, given: dict) -> optax.GradientTransformation:
    """The transformation, tried on two small parameters."""

    def update(params):
        return rule.update(params, rule.init(params), params)

    small = {"blocks": {"kernel": jnp.zeros((2, 4, 4))}, "scale": jnp.zeros(4)}
    try:
        rule = function(**given)
        jax.eval_shape(update, small)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"optimizer.name={cfg.name} cannot be used with gradients and parameters alone, or "
            f"needs more in optimizer.options: {reason}"
        ) from error
    state = jax.eval_shape(rule.init, small)
    free = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.contrib.ScheduleFreeState))
    if any(isinstance(each, optax.contrib.ScheduleFreeState) for each in free):
        raise ValueError(
            f"optimizer.name={cfg.name} evaluates at an average of its own, and a run saves and evaluates "
            "the parameters that are trained: use its base with optimizer.ema_decay"
        )
    return rule


def _adamw(*, b1, b2, eps, moment_dtype) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1, b2, eps, mu_dtype=moment_dtype)


def _lion(*, b1, b2, moment_dtype) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1, b2, mu_dtype=moment_dtype)


def _adafactor(*, b1, moment_dtype) -> optax.GradientTransformation:
    """Factored second moments with momentum, as big_vision trains (arXiv:1804.04235)."""
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.ema(b1, debias=False, accumulator_dtype=moment_dtype),
    )


# Those that are not optax's own recipe. Each takes the settings that it uses.
DIRECTIONS = {"adamw": _adamw, "lion": _lion, "adafactor": _adafactor, "muon": muon}
OPTAX = {
    name: function
    for library in (optax.contrib, optax)
    for name, function in vars(library).items()
    if inspect.isfunction(function)
    and not name.startswith(("_", "scale_by_"))
    and "learning_rate" in inspect.signature(function).parameters
}


def follow_step(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """The state with its schedules at a step, so that skipped steps do not move their end."""

    def follow(state):
        is_schedule = isinstance(state, optax.ScaleByScheduleState)
        return state._replace(count=step) if is_schedule else state

    return jax.tree.map(
        follow, opt_state, is_leaf=lambda state: isinstance(state, optax.ScaleByScheduleState)
    )


def scale_by_layer(decay: float, towers: Mapping[str, Tower]) -> optax.GradientTransformation:
    """The learning rate shrinks by `decay` a layer from a tower's top to its embeddings (BEiT)."""

    def factor(path, leaf):
        name = path_name(path)
        tower, _, rest = name.partition("/")
        if tower not in towers:
            return 1.0
        if "/blocks/" in name:
            # Block i of d has d - i layers above it, the head being one. A tower that is frozen
            # up to some block has the last ones alone here.
            powers = jnp.arange(leaf.shape[0], 0, -1, dtype=jnp.float32)
            return (decay**powers).reshape(-1, *[1] * (leaf.ndim - 1))
        above = rest.partition("/")[0] in towers[tower].above_blocks
        return 1.0 if above else decay ** (towers[tower].depth + 1)

    def init(params):
        for name in params.keys() & towers.keys():
            stacked_blocks(params[name], towers[name])
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        factors = jax.tree_util.tree_map_with_path(factor, updates)
        return jax.tree.map(jnp.multiply, updates, factors), state

    return optax.GradientTransformation(init, update)

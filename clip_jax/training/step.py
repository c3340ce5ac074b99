"""One optimizer step: a pure function of the state and a global batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.config import HealthConfig, OptimizerConfig, TrainConfig
from clip_jax.losses.objective import Objective, make_objective
from clip_jax.models.clip import CLIP, abstract_inputs
from clip_jax.training import updates
from clip_jax.training.gradients import batch_gradients
from clip_jax.training.metrics import mean_cosines
from clip_jax.training.optimizer import follow_step
from clip_jax.training.state import Health, TrainState


def jit_train_step(
    mesh: Mesh,
    abstract_state: TrainState,
    *,
    model: CLIP,
    optimizer: optax.GradientTransformation,
    cfg: TrainConfig,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """`train_step` compiled for a mesh; the state that it is given is used up."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        objective=make_objective(cfg.loss),
        mesh=mesh,
        cfg=cfg,
        update_shardings=sharding.over_data(abstract_state.params, shardings.params)
        if cfg.optimizer.shard_over_data
        else None,
    )
    return jax.jit(
        step,
        in_shardings=(shardings, NamedSharding(mesh, sharding.BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )


def train_step(
    state: TrainState,
    batch: dict,
    *,
    model: CLIP,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    mesh: Mesh,
    cfg: TrainConfig,
    update_shardings: Any = None,
) -> tuple[TrainState, dict]:
    """Gradients of the whole batch's loss, an update if they are sound, and what to log.

    Args:
      state: before the step.
      batch: {"image": uint8 (B, H, W, 3), "tokens": int32 (B, L)}, the global batch.
      model: maps a micro-batch to `Outputs`.
      optimizer: of the trained parameters.
      objective: of `Outputs` and the batch.
      mesh: where it all lies.
      cfg: accumulation, clamping, averaging and health.
      update_shardings: shardings of the parameters under which the update is computed, where the
        optimizer's state is split more than they are; None: as they are.

    Returns:
      The state after the step, and float32 scalars by name.
    """
    # The step number and the seed are all the randomness there is, so a resumed step repeats it.
    key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
    gradients = batch_gradients(
        state, batch, key, model=model, objective=objective, mesh=mesh, parts=cfg.data.accumulation
    )
    grads, before = gradients.params, state.params
    if update_shardings is not None:
        grads, before = jax.lax.with_sharding_constraint(
            (grads, before), (update_shardings, update_shardings)
        )
    norms = {name: optax.tree.norm(part) for name, part in sorted(grads.items())}
    grad_norm = optax.tree.norm(norms)

    # The learning rate is that of the step, however many were skipped before it.
    opt_state = follow_step(state.opt_state, state.step)
    update = functools.partial(optimizer.update, updates.written(grads, mesh), opt_state, before)
    twice = updates.is_made_twice(update, mesh)
    made = update() if twice else updates.written(update(), mesh)
    update_norm = updates.norm_of(made[0], in_passing=twice)
    sound, health = check_health(
        state.health,
        cfg.health,
        loss=gradients.loss,
        grad_norm=grad_norm,
        update_norm=update_norm,
    )
    unchanged = {"params": before, "batch_stats": state.batch_stats, "opt_state": state.opt_state}
    if state.ema is not None:
        unchanged |= {"ema": state.ema, "ema_batch_stats": state.ema_batch_stats}

    def after() -> dict:
        return _stepped(state, before, update() if twice else made, gradients.batch_stats, cfg)

    changed = updates.chosen(sound, after, unchanged, in_place=twice)
    metrics = {
        "loss": gradients.loss,
        **gradients.metrics,
        "logit_scale": jnp.exp(state.params["logit_scale"]),
        "grad_norm": grad_norm,
        "update_norm": update_norm,
        **{f"grad_norm_{name}": norms[name] for name in ("image", "text") if name in norms},
        **mean_cosines(gradients.outputs.image, gradients.outputs.text),
        "skipped_steps": health.skipped,
        "skipped_in_row": health.skipped_in_row,
    }
    if "logit_bias" in state.params:
        metrics["logit_bias"] = state.params["logit_bias"]
    return (
        state.replace(step=state.step + 1, health=health, **changed),
        metrics,
    )


def _stepped(
    state: TrainState,
    before: dict,
    made: tuple[dict, optax.OptState],
    batch_stats: dict,
    cfg: TrainConfig,
) -> dict:
    """The parts of the state that a step changes, after it."""
    step, opt_state = made
    params = optax.apply_updates(before, step)
    most = jnp.log(cfg.loss.max_logit_scale)
    params["logit_scale"] = jnp.clip(params["logit_scale"], 0.0, most)
    after = {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
    if state.ema is not None:
        decay = average_decay(cfg.optimizer, state.step)
        after["ema"], after["ema_batch_stats"] = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new,
            (state.ema, state.ema_batch_stats),
            (params, batch_stats),
        )
    return after


def average_decay(cfg: OptimizerConfig, step: jax.Array) -> jax.Array | float:
    """The share of the average that a step keeps.

    With `ema_warmup` it rises with the steps as that of TensorFlow's ExponentialMovingAverage, so
    that the average of a short run is of what it learnt, not of its random start.
    """
    if not cfg.ema_warmup:
        return cfg.ema_decay
    return jnp.minimum(cfg.ema_decay, (1 + step) / (10 + step))


def check_health(
    health: Health,
    cfg: HealthConfig,
    *,
    loss: jax.Array,
    grad_norm: jax.Array,
    update_norm: jax.Array,
) -> tuple[jax.Array, Health]:
    """Whether to take the step, and the counters after it."""
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
    sound = finite if cfg.skip_nonfinite else jnp.array(True)
    if cfg.spike_factor is not None:
        known = health.counted >= cfg.spike_warmup_steps
        sound &= ~(known & (grad_norm > cfg.spike_factor * health.grad_norm_mean))
    counted = health.counted + sound
    # A plain average at first, then one that forgets with a time constant of 100 steps.
    weight = jnp.maximum(0.01, 1 / jnp.maximum(counted, 1))
    mean = health.grad_norm_mean + weight * (grad_norm - health.grad_norm_mean)
    return sound, Health(
        skipped=health.skipped + ~sound,
        skipped_in_row=jnp.where(sound, 0, health.skipped_in_row + 1),
        grad_norm_mean=jnp.where(sound & finite, mean, health.grad_norm_mean),
        counted=counted,
    )


def abstract_batch(mesh: Mesh, model: CLIP, batch_size: int) -> Any:
    """Shapes, types and shardings of a global batch, for compiling ahead of the data."""
    split = sharding.batch_sharding(mesh)
    inputs = zip(("image", "tokens"), abstract_inputs(model.config, batch_size), strict=True)
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split) for name, leaf in inputs
    }

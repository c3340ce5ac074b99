"""The train step of a run, ready to be compiled for devices that need not be there."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.config import ModelConfig, TrainConfig
from clip_jax.hardware import traced_for
from clip_jax.models.clip import CLIP, unroll_of
from clip_jax.training import setup
from clip_jax.training.state import TrainState, abstract_state, check_batch_statistics
from clip_jax.training.step import abstract_batch, jit_train_step


@dataclass(frozen=True)
class Step:
    """A run's parts as far as they decide its program: no data is opened, no array is made."""

    cfg: TrainConfig
    mesh: Mesh
    config: ModelConfig
    model: CLIP
    optimizer: optax.GradientTransformation

    @functools.cached_property
    def state(self) -> TrainState:
        return abstract_state(
            self.mesh,
            model=self.model,
            optimizer=self.optimizer,
            freeze=self.cfg.model.freeze,
            unlocked_blocks=self.cfg.model.unlocked_blocks,
            ema=self.cfg.optimizer.ema_decay is not None,
            shard_over_data=self.cfg.optimizer.shard_over_data,
        )

    @property
    def batch(self) -> Any:
        return abstract_batch(self.mesh, self.model, self.cfg.data.batch_size)

    def lower(self) -> jax.stages.Lowered:
        """The program that `clip-jax train` would compile, for these devices."""
        step = jit_train_step(
            self.mesh, self.state, model=self.model, optimizer=self.optimizer, cfg=self.cfg
        )
        with traced_for(self.mesh.devices.flat[0]):
            return step.lower(self.state, self.batch)


def with_unroll(cfg: TrainConfig, device: Any) -> TrainConfig:
    """The run with what `model.unroll=None` means on a device."""
    with traced_for(device):
        unroll = unroll_of(setup.named_model(cfg))
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, unroll=unroll))


def make_step(cfg: TrainConfig, devices: Sequence[Any]) -> Step:
    """The step of a run on these devices.

    The vocabulary is `model.vocab_size`, else the architecture's: there is no tokenizer yet.

    Raises:
      ValueError: settings that contradict each other or the devices.
    """
    mesh = sharding.make_mesh(cfg.mesh, list(devices))
    plannable = _plannable(cfg)
    setup.check(plannable)
    setup.check_devices(_on_stand_ins(plannable, mesh), mesh)
    config = setup.named_model(plannable)
    if config.attention == "cudnn":  # which "auto" takes too, and only on a device that has it
        config = dataclasses.replace(config, attention="auto")
    model = setup.make_model(cfg, config, mesh)
    step = Step(cfg, mesh, config, model, setup.make_run_optimizer(plannable, config))
    # Sharded over the mesh now, which refuses an fsdp that splits nothing.
    check_batch_statistics(plannable, step.state)
    return step


def _plannable(cfg: TrainConfig) -> TrainConfig:
    """The run with what its step does not depend on made to fit: evaluation, length, weights."""
    schedule = cfg.optimizer
    steps = max(cfg.steps, schedule.warmup_steps + schedule.cooldown_steps + 1)
    evaluation = dataclasses.replace(cfg.evaluation, batch_size=cfg.data.batch_size)
    model = dataclasses.replace(cfg.model, init_from=cfg.model.init_from or "weights to come")
    return dataclasses.replace(cfg, steps=steps, evaluation=evaluation, model=model)


def _on_stand_ins(cfg: TrainConfig, mesh: Mesh) -> TrainConfig:
    """The run without its wish for cuDNN's attention, where CPU devices stand for GPUs."""
    is_absent = mesh.devices.flat[0].platform == "cpu" and cfg.model.attention == "cudnn"
    if not is_absent or cfg.model.dtype == "float32":
        return cfg
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, attention="auto"))


def refusals(cfg: TrainConfig, mesh: Mesh) -> tuple[str, ...]:
    """What `clip-jax train` would refuse of a run, though its step can be compiled."""
    found = []
    for check in (
        lambda: setup.check(cfg),
        lambda: setup.check_devices(_on_stand_ins(cfg, mesh), mesh),
    ):
        try:
            check()
        except ValueError as error:
            found.append(str(error))
    return tuple(found)

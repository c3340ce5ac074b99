"""Everything that a run is made of, from its settings: data, tokenizer, model, optimizer, step."""

import copy
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.config import ModelConfig, ModelSettings, ResNetConfig, TrainConfig
from clip_jax.data.samples import BadSample, Source
from clip_jax.data.sources import registry
from clip_jax.data.tokenizers.base import DESCRIPTION, Tokenizer
from clip_jax.data.tokenizers.registry import load_tokenizer, make_tokenizer
from clip_jax.data.tokenizers.transformers import TransformersTokenizer
from clip_jax.evaluation.suite import open_others
from clip_jax.load import load_to_host
from clip_jax.models import attention
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.runs import retention
from clip_jax.runs.directory import RunDirectory
from clip_jax.training.ignored_settings import refuse_ignored
from clip_jax.training.initial_weights import TOWERS, initial_variables, with_preprocess
from clip_jax.training.optimizer import make_optimizer, make_schedule
from clip_jax.training.state import TrainState, abstract_state, sharded_new_state
from clip_jax.weights.load import Loaded

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Setup:
    """The parts of a run, made and checked, before any array is on a device."""

    cfg: TrainConfig
    mesh: Mesh
    sources: Sequence[Source]
    eval_source: Source | None
    eval_also: dict[str, Source]
    tokenizer: Tokenizer
    model: CLIP
    optimizer: optax.GradientTransformation
    initial: Loaded | None  # what `model.init_from` names, on the host, until the run has begun

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        return abstract_state(self.mesh, **self._state_arguments)

    def new_state(self) -> TrainState:
        """The state at step 0."""
        if self.initial is None:
            return sharded_new_state(self.mesh, self.cfg.seed, **self._state_arguments)
        variables = initial_variables(self.cfg, self.model, self.initial, self.mesh)
        self.initial = None  # else the host would hold it as long as the run lives
        return sharded_new_state(
            self.mesh, self.cfg.seed, variables=variables, **self._state_arguments
        )

    @property
    def schedule(self) -> optax.Schedule:
        return make_schedule(self.cfg.optimizer, self.cfg.steps)

    @property
    def _state_arguments(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "freeze": self.cfg.model.freeze,
            "unlocked_blocks": self.cfg.model.unlocked_blocks,
            "ema": self.cfg.optimizer.ema_decay is not None,
        }


def prepare(cfg: TrainConfig, run: RunDirectory) -> Setup:
    """Make all parts of a run; a person's mistakes are found here, before the long work.

    Raises:
      ValueError, FileNotFoundError: the setting or file at fault, and how to mend it.
    """
    mesh = sharding.make_mesh(cfg.mesh)
    check(cfg, mesh)
    opened = registry.open_sources(cfg.data, "train")
    eval_source = _open_eval_source(cfg)
    # A run that goes on has its own weights by now; one that was killed in its first save has not.
    saved = any(path.name.isdigit() for path in run.checkpoints.glob("[0-9]*"))
    started = run.holds_run and saved
    settings = cfg.model
    initial = load_to_host(settings.init_from) if settings.init_from and not started else None
    architecture = named_model(cfg)
    tokenizer = _tokenizer(cfg, architecture, run, opened, initial)
    config = resolve_model(cfg, architecture, tokenizer)
    stored = initial.model.config if initial is not None else started and run.load_model_config()
    if stored and "image" in TOWERS[settings.init_towers]:
        config = with_preprocess(config, stored)
    model = CLIP(config, constrain=sharding.constrain_batch(mesh))
    return Setup(
        cfg=cfg,
        mesh=mesh,
        sources=opened,
        eval_source=eval_source,
        eval_also=open_others(cfg.data) if eval_source is not None else {},
        tokenizer=tokenizer,
        model=model,
        optimizer=make_run_optimizer(cfg, config),
        initial=initial,
    )


def check(cfg: TrainConfig, mesh: Mesh):
    """Refuse settings that contradict each other or the devices."""
    optimizer, loss = cfg.optimizer, cfg.loss
    for name, value, least in (
        ("steps", cfg.steps, 1),
        ("data.accumulation", cfg.data.accumulation, 1),
        ("logging.every_steps", cfg.logging.every_steps, 1),
        ("evaluation.every_steps", cfg.evaluation.every_steps, 0),
        ("checkpoint.every_steps", cfg.checkpoint.every_steps, 1),
        ("checkpoint.keep_every_steps", cfg.checkpoint.keep_every_steps, 1),
        ("model.unlocked_blocks", cfg.model.unlocked_blocks, 0),
        ("loss.tile", loss.tile, 1),
        ("loss.max_logit_scale", loss.max_logit_scale, 1),
        ("health.max_skipped_in_row", cfg.health.max_skipped_in_row, 1),
        ("optimizer.warmup_steps", optimizer.warmup_steps, 0),
        ("optimizer.cooldown_steps", optimizer.cooldown_steps, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    for name, value, most in (
        ("optimizer.learning_rate", optimizer.learning_rate, math.inf),
        ("optimizer.clip_norm", optimizer.clip_norm, math.inf),
        ("optimizer.layer_decay", optimizer.layer_decay, 1),
        ("optimizer.ema_decay", optimizer.ema_decay, math.nextafter(1, 0)),
        ("checkpoint.every_minutes", cfg.checkpoint.every_minutes, math.inf),
        ("health.spike_factor", cfg.health.spike_factor, math.inf),
    ):
        if value is not None and not 0 < value <= most:
            limit = "" if most == math.inf else f" and {'below' if most < 1 else 'at most'} 1"
            raise ValueError(f"{name}={value} must be above 0{limit}")
    sharding.check_batch("data.batch_size", cfg.data.batch_size, mesh, parts=cfg.data.accumulation)
    sharding.check_batch("evaluation.batch_size", cfg.evaluation.batch_size, mesh)
    if loss.tile is not None and loss.distributed == "replicated":
        raise ValueError(f'loss.tile={loss.tile} needs loss.distributed="gather" or "ring"')
    attention.check_kind(cfg.model.attention, cfg.model.dtype, setting="model.attention")
    _check_frozen(cfg.model)
    if cfg.checkpoint.keep_best_by is not None:
        others = [entry.partition("=")[0] for entry in cfg.data.eval_also]
        retention.check_name(cfg.checkpoint.keep_best_by, others)
    refuse_ignored(cfg)


def _open_eval_source(cfg: TrainConfig) -> Source | None:
    evaluates = cfg.evaluation.every_steps != 0
    opened = registry.open_eval_source(cfg.data) if evaluates else None
    if cfg.checkpoint.keep_best_by is not None and opened is None:
        why = "there is no test data: name some in data.eval_source"
        raise ValueError(
            f"checkpoint.keep_best_by={cfg.checkpoint.keep_best_by} is never measured, as "
            + (why if evaluates else "evaluation.every_steps=0 switches evaluation off")
        )
    if cfg.data.eval_also and opened is None and evaluates:
        raise ValueError(
            f"data.eval_also={cfg.data.eval_also} comes beside other test data, and there is none: "
            "name the first in data.eval_source"
        )
    return opened


def _check_frozen(cfg: ModelSettings):
    if cfg.freeze == "none":
        return
    if cfg.init_from is None:
        raise ValueError(
            f"model.freeze={cfg.freeze} would keep random weights: name the weights of the "
            "frozen tower in model.init_from"
        )
    if cfg.init_towers not in ("both", cfg.freeze):
        raise ValueError(
            f"model.freeze={cfg.freeze} would keep random weights, as model.init_towers="
            f"{cfg.init_towers} loads the other tower alone: set it to {cfg.freeze} or both"
        )
    config = model_config(cfg.name)
    depth = getattr({"image": config.vision, "text": config.text}[cfg.freeze], "depth", 0)
    if cfg.unlocked_blocks > depth:
        raise ValueError(
            f"model.unlocked_blocks={cfg.unlocked_blocks} must be at most {depth}, the blocks that "
            f"the {cfg.freeze} tower of {cfg.name} has"
        )


def named_model(cfg: TrainConfig) -> ModelConfig:
    """The architecture with the run's changes, but for what only the tokenizer knows."""
    settings = cfg.model
    changes = {
        name: getattr(settings, name)
        for name in ("image_size", "context_length", "vocab_size", "patch_dropout")
        if getattr(settings, name) is not None
    }
    config = model_config(
        settings.name,
        dtype=settings.dtype,
        remat=settings.remat,
        unroll=settings.unroll,
        attention=settings.attention,
        **changes,
    )
    has_bias = config.init_logit_bias is not None
    if cfg.loss.kind == "sigmoid" and not has_bias:
        # Where SigLIP starts (arXiv:2303.15343, section 3.2).
        return dataclasses.replace(config, init_logit_scale=math.log(10), init_logit_bias=-10.0)
    if cfg.loss.kind == "softmax" and has_bias:
        log.warning("%s was made for the sigmoid loss; its bias is left out", config.name)
        plain = ModelConfig.init_logit_scale
        return dataclasses.replace(config, init_logit_scale=plain, init_logit_bias=None)
    return config


def resolve_model(cfg: TrainConfig, config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The architecture with the vocabulary of the tokenizer that the run uses."""
    ends_low = tokenizer.kind in ("siglip", "clipa") or (
        isinstance(tokenizer, TransformersTokenizer)
        and tokenizer.end_id != tokenizer.vocab_size - 1
    )
    if config.text.pool == "argmax" and ends_low:
        raise ValueError(
            f"{config.name} reads a text at its largest id, which is not where the tokenizer of "
            f"kind {tokenizer.kind} ends it: choose another tokenizer.kind, or a model.name of "
            "that tokenizer's family"
        )
    kind = "huggingface" if tokenizer.kind == "clipa" else tokenizer.kind  # of the same file
    if tokenizer.kind in ("transformers", "siglip-transformers"):  # of released weights
        kind = config.tokenizer if config.tokenizer != "sentencepiece" else "huggingface"
    if cfg.model.vocab_size is not None:
        if cfg.model.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"model.vocab_size={cfg.model.vocab_size} is below the {tokenizer.vocab_size} ids "
                "of the tokenizer: raise it, or leave it at None"
            )
        return config
    fits = config.tokenizer == kind and config.text.vocab_size >= tokenizer.vocab_size
    if fits and kind != "sentencepiece":
        return config
    return model_config(config, vocab_size=tokenizer.vocab_size, tokenizer=kind)


def make_run_optimizer(cfg: TrainConfig, config: ModelConfig) -> optax.GradientTransformation:
    if cfg.optimizer.layer_decay is not None and isinstance(config.vision, ResNetConfig):
        raise ValueError(
            f"optimizer.layer_decay={cfg.optimizer.layer_decay} goes by a tower's blocks and "
            f"{config.name} has a ResNet, which has none: leave it at None"
        )
    depths = {"text": config.text.depth, "image": getattr(config.vision, "depth", 0)}
    return make_optimizer(cfg.optimizer, cfg.steps, depths=depths)


def _tokenizer(
    cfg: TrainConfig,
    config: ModelConfig,
    run: RunDirectory,
    opened: Sequence[Source],
    initial: Loaded | None,
) -> Tokenizer:
    """The run's own one where it has one already, else a new one."""
    context_length = config.text.context_length
    if (run.tokenizer / DESCRIPTION).exists():
        return load_tokenizer(run.tokenizer, context_length=context_length)
    told = cfg.tokenizer.path is not None or cfg.tokenizer.kind != "auto"
    takes_text = cfg.model.init_towers in ("both", "text")
    if initial is not None and initial.tokenizer is not None and takes_text and not told:
        tokenizer = copy.copy(initial.tokenizer)
        tokenizer.context_length = context_length
        return tokenizer
    # Every process trains the same one from the same captions, so nothing has to be sent.
    return make_tokenizer(cfg.tokenizer, config.tokenizer, context_length, lambda: captions(opened))


def captions(opened: Sequence[Source]) -> Iterable[str]:
    """All captions of the sources, taking turns; what cannot be read is passed over."""
    for index in itertools.count():
        left = [source for source in opened if index < len(source)]
        if not left:
            return
        for source in left:
            try:
                yield from source[index].captions
            except BadSample:
                continue

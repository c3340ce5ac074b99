"""Everything that a run is made of, from its settings: data, tokenizer, model, optimizer, step."""

import copy
import dataclasses
import functools
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.config import DataConfig, ModelConfig, ModelSettings, TrainConfig
from clip_jax.data.device_decode import find_gpus
from clip_jax.data.images.transforms import ImageError, decode
from clip_jax.data.samples import BadSample, Source
from clip_jax.data.sorted_data import warn_of_sorted_data
from clip_jax.data.sources import registry
from clip_jax.data.tokenizers.base import DESCRIPTION, Tokenizer
from clip_jax.data.tokenizers.registry import load_tokenizer, make_tokenizer
from clip_jax.evaluation.suite import (
    Evaluators,
    best_direction,
    named_evaluators,
    open_others,
)
from clip_jax.load import load_to_host
from clip_jax.losses.objective import make_objective
from clip_jax.models import attention
from clip_jax.models.architectures import model_config
from clip_jax.models.clip import CLIP
from clip_jax.models.tower import name_of
from clip_jax.runs.directory import RunDirectory
from clip_jax.runs.loggers import check_loggers
from clip_jax.training.initial_weights import (
    TOWERS,
    initial_variables,
    with_given_heads,
    with_preprocess,
)
from clip_jax.training.optimizer import make_optimizer, make_schedule, named_optimizer
from clip_jax.training.state import (
    TrainState,
    abstract_state,
    check_batch_statistics,
    replication_warning,
    sharded_new_state,
)
from clip_jax.training.step_log import make_hooks
from clip_jax.weights.load import Loaded

log = logging.getLogger(__name__)

PROBED = 16  # samples of test data that are tried before the training


@dataclasses.dataclass
class Setup:
    """The parts of a run, made and checked, before any array is on a device."""

    cfg: TrainConfig
    mesh: Mesh
    sources: Sequence[Source]
    eval_source: Source | None
    evaluators: Evaluators | None
    tokenizer: Tokenizer
    model: CLIP
    optimizer: optax.GradientTransformation
    initial: Loaded | None  # what `model.init_from` names, on the host, until the run has begun

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        over_data = self.cfg.optimizer.shard_over_data
        state = abstract_state(self.mesh, shard_over_data=over_data, **self._state_arguments)
        if warning := replication_warning(self.mesh, state):
            log.warning("%s", warning)
        return state

    def new_state(self) -> TrainState:
        """The state at step 0."""
        variables = None
        if self.initial is not None:
            variables = initial_variables(self.cfg, self.model, self.initial, self.mesh)
            self.initial = None  # else the host would hold it as long as the run lives
        state = sharded_new_state(
            self.abstract_state, self.cfg.seed, variables=variables, **self._state_arguments
        )
        return with_given_heads(state, self.model.heads)

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
    check(cfg)
    mesh = sharding.make_mesh(cfg.mesh)
    check_devices(cfg, mesh)
    if cfg.data.decode == "gpu":
        find_gpus()
    architecture = named_model(cfg)
    opened = registry.open_sources(cfg.data, "train")
    if jax.process_index() == 0 and not run.holds_run:
        warn_of_sorted_data(opened, cfg.data)
    eval_source = _open_eval_source(cfg)
    # A run that resumes has its own weights by now; one that was killed in its first save has not.
    saved = any(path.name.isdigit() for path in run.checkpoints.glob("[0-9]*"))
    started = run.holds_run and saved
    settings = cfg.model
    initial = load_to_host(settings.init_from) if settings.init_from and not started else None
    tokenizer = _tokenizer(cfg, architecture, run, opened, initial)
    config = resolve_model(cfg, architecture, tokenizer)
    stored = initial.model.config if initial is not None else started and run.load_model_config()
    if stored and "image" in TOWERS[settings.init_towers]:
        config = with_preprocess(config, stored)
    if cfg.data.exif_rotation:  # whoever loads the model is to do the same
        preprocess = dataclasses.replace(config.preprocess, exif_rotation=True)
        config = dataclasses.replace(config, preprocess=preprocess)
    model = make_model(cfg, config, mesh)
    setup = Setup(
        cfg=cfg,
        mesh=mesh,
        sources=opened,
        eval_source=eval_source,
        evaluators=_evaluators(cfg, mesh, model, tokenizer, eval_source),
        tokenizer=tokenizer,
        model=model,
        optimizer=make_run_optimizer(cfg, config),
        initial=initial,
    )
    check_batch_statistics(cfg, setup.abstract_state)
    return setup


def check(cfg: TrainConfig):
    """Refuse settings of several groups that contradict each other. No device is touched."""
    make_schedule(cfg.optimizer, cfg.steps)
    named_optimizer(cfg.optimizer)
    make_objective(cfg.loss)
    make_hooks(cfg.logging.hooks)
    check_loggers(cfg.logging.loggers)
    _check_frozen(cfg.model)
    named_evaluators(cfg.evaluation)
    best_direction(cfg)


def check_devices(cfg: TrainConfig, mesh: Mesh):
    """Refuse settings that the devices do not allow."""
    sharding.check_batch("data.batch_size", cfg.data.batch_size, mesh, parts=cfg.data.accumulation)
    sharding.check_batch("evaluation.batch_size", cfg.evaluation.batch_size, mesh)
    model, device = cfg.model, mesh.devices.flat[0]
    attention.check_kind(model.attention, model.dtype, device=device, setting="model.attention")


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


def _evaluators(
    cfg: TrainConfig, mesh: Mesh, model: CLIP, tokenizer: Tokenizer, source: Source | None
) -> Evaluators | None:
    """What measures the model on all test data, of which some samples were read."""
    if source is None:
        return None
    others = open_others(cfg.data)
    probe(source, cfg.data)
    for other in others.values():
        probe(other, cfg.data)
    return Evaluators(
        source, others, model, mesh, tokenizer, cfg=cfg.evaluation, data=cfg.data, loss=cfg.loss
    )


def probe(source: Source, cfg: DataConfig):
    """Read some samples of test data, so that what cannot be read is known before the training.

    Raises:
      ValueError: there are none, or none of those tried can be read.
    """
    reasons = []
    for index in np.unique(np.linspace(0, len(source) - 1, PROBED, dtype=int)):
        try:
            decode(source[int(index)].image, max_pixels=cfg.max_image_pixels)
            return
        except (BadSample, ImageError) as error:
            reasons.append(str(error))
    raise ValueError(
        f"the test data {source.name} cannot be read: "
        + (f"{len(reasons)} samples were tried; {reasons[0]}" if reasons else "it has no samples")
    )


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
    depth = config.towers[cfg.freeze].depth
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
    scalars = make_objective(cfg.loss).scalars
    start_scale = scalars.get("logit_scale", ModelConfig.init_logit_scale)
    start_bias, has_bias = scalars.get("logit_bias"), config.init_logit_bias is not None
    if has_bias == (start_bias is not None):
        return config
    if has_bias:
        log.warning("No term of the loss reads the logit bias of %s: it has none here", config.name)
    return dataclasses.replace(config, init_logit_scale=start_scale, init_logit_bias=start_bias)


def make_model(cfg: TrainConfig, config: ModelConfig, mesh: Mesh) -> CLIP:
    """The model on the mesh, with what the terms of the loss need beside its towers."""
    heads = make_objective(cfg.loss).heads
    return CLIP(config, sharding.constrain_batch(mesh), heads, checked=False)


def resolve_model(cfg: TrainConfig, config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The architecture with the vocabulary of the tokenizer that the run uses."""
    if config.text.reads_largest_id and not tokenizer.ends_at_largest_id:
        raise ValueError(
            f"{config.name} reads a text at its largest id, which is not where the tokenizer of "
            f"kind {tokenizer.kind} ends it: choose another tokenizer.kind, or a model.name of "
            "that tokenizer's family"
        )
    kind = "huggingface" if tokenizer.kind == "clipa" else tokenizer.kind  # of the same file
    if tokenizer.kind in ("transformers", "siglip-transformers"):  # of released weights
        kind = config.tokenizer if config.tokenizer != "sentencepiece" else "huggingface"
    vocab_size = config.text.vocab_size
    if cfg.model.vocab_size is not None:
        if cfg.model.vocab_size < tokenizer.embedded:
            raise ValueError(
                f"model.vocab_size={cfg.model.vocab_size} is below the {tokenizer.embedded} ids "
                "of the tokenizer: raise it, or leave it at None"
            )
        kind = config.tokenizer
    elif config.tokenizer != kind or vocab_size < tokenizer.embedded or kind == "sentencepiece":
        vocab_size = tokenizer.embedded
    text = config.text.with_vocabulary(vocab_size, tokenizer.end_id)
    return dataclasses.replace(config, text=text, tokenizer=kind)


def make_run_optimizer(cfg: TrainConfig, config: ModelConfig) -> optax.GradientTransformation:
    plain = [name_of(tower) for tower in config.towers.values() if not tower.depth]
    if cfg.optimizer.layer_decay is not None and plain:
        raise ValueError(
            f"optimizer.layer_decay={cfg.optimizer.layer_decay} goes by a tower's blocks and "
            f"{plain[0]}, a tower of {config.name}, has none: leave it at None"
        )
    return make_optimizer(cfg.optimizer, cfg.steps, towers=config.towers)


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
        tokenizer = load_tokenizer(run.tokenizer, context_length=context_length)
        stored = run.load_model_config()
        tokenizer.rows = stored and stored.text.vocab_size
        return tokenizer
    chosen = cfg.tokenizer.path is not None or cfg.tokenizer.kind != "auto"
    takes_text = cfg.model.init_towers in ("both", "text")
    if initial is not None and initial.tokenizer is not None and takes_text and not chosen:
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

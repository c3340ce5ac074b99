"""The weights that `model.init_from` names: the towers that a run takes from them, the others new."""

import dataclasses
import difflib
import logging
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from clip_jax import sharding
from clip_jax.config import ModelConfig, TrainConfig
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.clip import CLIP, sharding_rows
from clip_jax.models.tower import Head, name_of
from clip_jax.training.state import TrainState, new_state
from clip_jax.weights import position_embeddings
from clip_jax.weights.load import Loaded

log = logging.getLogger(__name__)

TOWERS = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}


def initial_variables(cfg: TrainConfig, model: CLIP, initial: Loaded, mesh: Mesh) -> dict:
    """What a run starts from, on the mesh. Every process has read all of `initial`.

    Raises:
      ValueError: the weights do not fit the run's model.
    """

    def make(key: jax.Array) -> dict:
        return new_state(key, model=model, optimizer=optax.identity()).variables

    key = jax.random.key(cfg.seed)
    shapes = jax.eval_shape(make, key)
    shardings = sharding.shardings(mesh, shapes, rows=sharding_rows(model.config, model.heads))
    taken = _taken(cfg, model, initial, shapes)
    others = jax.jit(
        lambda key: _without(make(key), taken), out_shardings=_without(shardings, taken)
    )(key)
    return {
        kind: {
            name: jax.tree.map(_put, taken[kind][name], wanted)
            if name in taken.get(kind, ())
            else others[kind][name]
            for name, wanted in parts.items()
        }
        for kind, parts in shardings.items()
    }


def _taken(cfg: TrainConfig, model: CLIP, initial: Loaded, shapes: dict) -> dict:
    """The parts of the variables that come from `initial`, at the run's image size and context."""
    towers = TOWERS[cfg.model.init_towers]
    stored = initial.model.config
    loaded = position_embeddings.resize(
        initial.variables, stored, _resized(stored, model.config, towers)
    )
    differing = [
        f"{name}: {a.shape} in {cfg.model.init_from}, {b.shape} in {model.config.name}"
        for name, a, b in _paired(loaded["params"], shapes["params"], towers)
        if a is None or b is None or a.shape != b.shape
    ]
    if differing:
        raise ValueError(_misfit(cfg, model.config, stored, differing[:3]))
    check_arithmetic(cfg, model.config, stored)
    wanted = shapes["params"].keys() - {head.name for head in model.heads}
    if towers == TOWERS["both"] and loaded["params"].keys() == wanted:
        check_scale(cfg, float(np.exp(loaded["params"]["logit_scale"])))
        return loaded
    # A scale without its bias, or of another pair of towers, says nothing: it starts again.
    taken = {"params": {name: loaded["params"][name] for name in towers}}
    if "image" in towers and "batch_stats" in loaded:
        taken["batch_stats"] = loaded["batch_stats"]
    return taken


def with_given_heads(state: TrainState, heads: Iterable[Head]) -> TrainState:
    """A new state with the weights of those heads that come with some, such as a teacher's.

    Raises:
      ValueError: they are not those of its module.
    """
    for head in heads:
        given = head.weights()
        if given is None:
            continue
        params = ("frozen",) if head.frozen else ("params", "ema")
        for kind, fields in (
            ("params", params),
            ("batch_stats", ("batch_stats", "ema_batch_stats")),
        ):
            for field in fields:
                now = getattr(state, field) or {}
                if head.name in now:
                    placed = _placed(head.name, given.get(kind, {}), now[head.name])
                    state = state.replace(**{field: now | {head.name: placed}})
    return state


def _placed(head: str, given: dict, now: dict) -> dict:
    if jax.tree.map(np.shape, given) != jax.tree.map(np.shape, now):
        raise ValueError(f"the weights of the head {head} are not those of its module, by shape")
    return jax.tree.map(lambda x, to: _put(np.asarray(x, to.dtype), to.sharding), given, now)


def with_preprocess(config: ModelConfig, stored: ModelConfig) -> ModelConfig:
    """The architecture with the preprocessing under which the weights of its image tower grew."""
    if stored.preprocess != config.preprocess:
        log.warning("The preprocessing is that of the weights: %s", stored.preprocess)
    return dataclasses.replace(config, preprocess=stored.preprocess)


def check_scale(cfg: TrainConfig, scale: float):
    """Refuse weights whose logit scale the first step would clamp, which changes all of the loss."""
    most = cfg.loss.max_logit_scale
    if scale > most * 1.0001:  # OpenAI's stand at 100, but for rounding
        raise ValueError(
            f"model.init_from={cfg.model.init_from} has a logit scale of {scale:.1f}, and "
            f"loss.max_logit_scale={most:g} would clamp it: set it to {math.ceil(scale)} or more"
        )


def check_arithmetic(cfg: TrainConfig, wanted: ModelConfig, stored: ModelConfig):
    """Compare what leaves no trace in shapes: weights mean nothing under another arithmetic.

    Raises:
      ValueError: a taken tower was trained with another one; the message names the architecture
        that has it.
    """
    differing = {
        f"{name} {field}": (theirs.get(field), ours[field])
        for name in TOWERS[cfg.model.init_towers]
        for theirs, ours in [(stored.towers[name].arithmetic(), wanted.towers[name].arithmetic())]
        for field in ours
        if theirs.get(field) != ours[field]
    }
    if not differing:
        return
    listed = [f"{name} {theirs} in the weights, {ours} in the model" for name, (theirs, ours) in differing.items()]  # fmt: skip
    both_gelu = all(set(values) == {"gelu", "gelu_tanh"} for values in differing.values())
    if both_gelu and not _names_of(stored, TOWERS[cfg.model.init_towers]):
        # Other libraries compute SigLIP with either form, and neither has a name of its own here.
        log.warning("model.init_from: %s; embeddings differ by about 1e-3", "; ".join(listed))
        return
    raise ValueError(_misfit(cfg, wanted, stored, listed))


def _misfit(cfg: TrainConfig, wanted: ModelConfig, stored: ModelConfig, reasons: list) -> str:
    names = _names_of(stored, TOWERS[cfg.model.init_towers])
    near = difflib.get_close_matches(wanted.name, names, n=1, cutoff=0)
    hint = f"; --model.name {near[0]} fits" if near and near[0] != wanted.name else ""
    return (
        f"model.init_from={cfg.model.init_from} does not fit model.name={wanted.name}: "
        f"{'; '.join(reasons)}{hint}"
    )


def _names_of(stored: ModelConfig, towers: Iterable[str]) -> list[str]:
    """The known architectures with the same towers, at whatever image size and context."""
    return [
        name
        for name, config in ARCHITECTURES.items()
        if all(config.towers[t].arithmetic() == stored.towers[t].arithmetic() for t in towers)
    ]


def _without(variables: dict, taken: dict) -> dict:
    return {
        kind: {name: part for name, part in parts.items() if name not in taken.get(kind, ())}
        for kind, parts in variables.items()
    }


def _put(array: Any, to: NamedSharding) -> jax.Array:
    """Each device gets its own part, also where other processes have some of the devices."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, to, lambda index: array[index])


def _resized(stored: ModelConfig, wanted: ModelConfig, towers: tuple) -> ModelConfig:
    """The stored architecture, with the run's image size and context where a tower is taken."""
    vision, text = stored.vision, stored.text
    if "image" in towers and name_of(vision) == name_of(wanted.vision):
        vision = dataclasses.replace(vision, image_size=wanted.vision.image_size)
    if "text" in towers and name_of(text) == name_of(wanted.text):
        text = dataclasses.replace(text, context_length=wanted.text.context_length)
    return dataclasses.replace(stored, vision=vision, text=text)


def _paired(loaded: dict, fresh: dict, towers: Iterable[str]):
    for tower in towers:
        sides = [
            {sharding.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in (loaded[tower], fresh[tower])
        ]
        for name in sorted(sides[0].keys() | sides[1].keys()):
            yield f"{tower}/{name}", sides[0].get(name), sides[1].get(name)

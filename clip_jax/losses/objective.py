"""What is minimised: a sum of named, weighted losses of the global batch."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax.config import LossConfig
from clip_jax.losses.distributed import torus_view
from clip_jax.losses.record import Loss
from clip_jax.losses.sigmoid import SIGMOID
from clip_jax.losses.softmax import SOFTMAX
from clip_jax.models.tower import Head
from clip_jax.registry import resolve

OWN_NAMES = ("image", "text", "logit_scale", "logit_bias")  # parameters of every model
LOSSES = {loss.name: loss for loss in (SOFTMAX, SIGMOID)}


class Term(NamedTuple):
    loss: Loss
    weight: float


@dataclasses.dataclass(frozen=True)
class Objective:
    """The terms, and how those that are sharded are computed over the devices."""

    terms: tuple[Term, ...]
    distributed: str = "gather"
    tile: int | None = None

    def __call__(
        self, outputs: Any, batch: dict[str, jax.Array], *, mesh: Mesh | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The weighted sum, and what to log: each term as loss/NAME, and its further scalars.

        Args:
          outputs: `Outputs` of the global batch.
          batch: the arrays that the model was given.
          mesh: the devices, over all of whose axes the batch is split; None: the whole batch is
            on each of them.

        Raises:
          ValueError: a term reads what neither the model nor the batch has.
        """
        total, metrics = None, {}
        for loss, weight in self.terms:
            value, further = self._term(loss, outputs, batch, mesh)
            weighted = value if weight == 1 else weight * value
            total = weighted if total is None else total + weighted
            metrics |= further | {f"loss/{loss.name}": value}
        return total, metrics

    def _term(self, loss: Loss, outputs: Any, batch: dict, mesh: Mesh | None):
        outputs = outputs._replace(extra=_chosen(loss, loss.extra, outputs.extra, "Outputs.extra"))
        batch = _chosen(loss, loss.batch, batch, "the batch")
        function = loss.function
        if loss.sharded:
            mesh = mesh and torus_view(mesh)
            axes = None if mesh is None else mesh.axis_names

            def function(outputs, batch):
                how = {"axis_name": axes, "distributed": self.distributed, "tile": self.tile}
                return _with_metrics(loss, loss.function(outputs, batch, **how))

            if mesh is not None:
                rows = jax.tree.map(lambda x: P(axes) if jnp.ndim(x) else P(), (outputs, batch))
                function = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=P())
        return _with_metrics(loss, function(outputs, batch))

    @property
    def scalars(self) -> dict[str, float]:
        """The trained scalars that the terms read; each starts as the first of them says."""
        return {k: v for term in reversed(self.terms) for k, v in term.loss.scalars.items()}

    @property
    def heads(self) -> tuple[Head, ...]:
        """What the terms need beside the towers; several may need the same."""
        return tuple(dict.fromkeys(head for term in self.terms for head in term.loss.heads))

    def keep_read(self, outputs: Any) -> Any:
        """`Outputs` with those extra arrays alone that a term reads."""
        names = {name for term in self.terms for name in term.loss.extra}
        kept = {name: x for name, x in outputs.extra.items() if name in names}
        return outputs._replace(extra=kept)

    def of_embeddings(self, *, tile: int | None = None) -> tuple["Objective | None", list[str]]:
        """The objective for an evaluation that has embeddings alone, and the names of the omitted terms.

        Args:
          tile: rows' worth of similarities that a device holds at once.

        Returns:
          None in the place of the objective when no term is left.
        """
        terms = tuple(term for term in self.terms if term.loss.needs_embeddings_alone)
        left_out = [term.loss.name for term in self.terms if term not in terms]
        distributed = "gather" if self.distributed == "replicated" else self.distributed
        kept = Objective(terms, distributed, tile) if terms else None
        return kept, left_out


def make_objective(cfg: LossConfig) -> Objective:
    """The loss that `loss.kind` names, with weight 1, and those of `loss.terms`.

    Raises:
      ValueError: a name that there is not, a weight that is no number, or a name twice.
    """
    terms = [Term(_loss("loss.kind", cfg.kind), 1.0)]
    for entry in cfg.terms:
        name, equals, text = entry.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = None
        if not equals or weight is None or not math.isfinite(weight) or weight == 0:
            raise ValueError(
                f"loss.terms has {entry!r}: write NAME=WEIGHT, such as sigmoid=0.5 or "
                "package.module:NAME=0.1, with a weight that is finite and not 0"
            )
        terms.append(Term(_loss("loss.terms", name), weight))
    names = [term.loss.name for term in terms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"loss.kind and loss.terms name {', '.join(twice)} more than once")
    objective = Objective(tuple(terms), cfg.distributed, cfg.tile)
    heads = [head.name for head in objective.heads]
    if twice := {name for name in heads if heads.count(name) > 1 or name in OWN_NAMES}:
        raise ValueError(
            f"the terms of the loss have several parts of the model named {', '.join(sorted(twice))}: "
            f"each head needs a name of its own, and none of {', '.join(OWN_NAMES)}"
        )
    return objective


def kind_for(scalars: Any) -> str:
    """The contrastive loss of a model whose run is not known: the one that reads its scalars.

    Args:
      scalars: the model's parameters, or the names of its trained scalars.
    """
    has = {name for name in scalars if name.startswith("logit_")}
    return next(name for name, loss in LOSSES.items() if set(loss.scalars) == has)


def _loss(setting: str, name: str) -> Loss:
    loss = resolve(setting, name, LOSSES)
    if not isinstance(loss, Loss):
        raise ValueError(
            f"{setting}={name!r} is a {type(loss).__name__}: name a clip_jax.losses.record.Loss"
        )
    return loss


def _chosen(loss: Loss, names: tuple[str, ...], arrays: dict, where: str) -> dict:
    if missing := [name for name in names if name not in arrays]:
        there = ", ".join(sorted(arrays)) or "nothing"
        raise ValueError(f"the loss {loss.name} reads {missing} of {where}, which has {there}")
    return {name: arrays[name] for name in names}


def _with_metrics(loss: Loss, found: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    value, metrics = found if isinstance(found, tuple) else (found, {})
    if jnp.ndim(value):
        raise ValueError(
            f"the loss {loss.name} returned an array of shape {jnp.shape(value)}: it must return "
            "one number, such as the mean over the batch"
        )
    return value, metrics

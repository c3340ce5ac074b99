"""What a run is at one moment, as data: all that a checkpoint must hold."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from clip_jax import sharding
from clip_jax.config import TrainConfig
from clip_jax.models.clip import CLIP, init_variables, sharding_rows
from clip_jax.models.freezing import merge, split, variables_of

FROZEN = {"none": (), "image": ("image",), "text": ("text",)}


@flax.struct.dataclass
class Health:
    """How the run has fared so far, on the device, so that no step waits for the host."""

    skipped: jax.Array  # () int32: steps that were skipped
    skipped_in_row: jax.Array  # () int32: how many of them were the latest ones
    grad_norm_mean: jax.Array  # () float32: running average of the gradient norm
    counted: jax.Array  # () int32: steps in that average


@flax.struct.dataclass
class TrainState:
    """The step number is the data's whole state too, and the random numbers' with the seed."""

    step: jax.Array  # () int32: steps done
    params: dict  # trained
    frozen: dict  # what is not trained of a tower or head; no optimizer state is kept for it
    batch_stats: dict  # of ResNets; else empty
    opt_state: optax.OptState
    ema: dict | None  # running average of `params`
    ema_batch_stats: dict  # that of `batch_stats`, where there is one of `params`; else empty
    health: Health

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return variables_of(merge(self.params, self.frozen), self.batch_stats)

    @property
    def ema_variables(self) -> dict:
        """The averages where they are kept, else the latest ones."""
        if self.ema is None:
            return self.variables
        return variables_of(merge(self.ema, self.frozen), self.ema_batch_stats)


def new_state(
    key: jax.Array,
    *,
    model: CLIP,
    optimizer: optax.GradientTransformation,
    freeze: str = "none",
    unlocked_blocks: int = 0,
    ema: bool = False,
    variables: dict | None = None,
) -> TrainState:
    """Step 0, from the architecture's initialisation or from the given variables."""
    if variables is None:
        variables = init_variables(model, key)
    locked = {name: model.config.towers[name] for name in FROZEN[freeze]}
    params, frozen = split(variables["params"], locked, unlocked=unlocked_blocks)
    frozen |= {head.name: params.pop(head.name) for head in model.heads if head.frozen}
    batch_stats = variables.get("batch_stats", {})
    zero, no_norm = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return TrainState(
        step=zero,
        params=params,
        frozen=frozen,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if ema else {},
        health=Health(skipped=zero, skipped_in_row=zero, grad_norm_mean=no_norm, counted=zero),
    )


def abstract_state(
    mesh: Mesh, *, model: CLIP, shard_over_data: bool = False, **others: Any
) -> TrainState:
    """The state's shapes, types and shardings on the mesh, without one array made.

    Args:
      mesh: the devices.
      model: the rows of its towers shard its parameters.
      shard_over_data: split the optimizer's state over "data" as well.
      **others: of `new_state`.
    """
    shapes = jax.eval_shape(lambda: new_state(jax.random.key(0), model=model, **others))
    shardings = sharding.shardings(mesh, shapes, rows=sharding_rows(model.config, model.heads))
    if shard_over_data:
        shardings = shardings.replace(
            opt_state=sharding.over_data(shapes.opt_state, shardings.opt_state)
        )
    return jax.tree.map(
        lambda leaf, wanted: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted),
        shapes,
        shardings,
    )


def replication_warning(mesh: Mesh, state: TrainState) -> str | None:
    """What "fsdp" leaves whole of the parameters and their moments, where that is much."""
    held = {"params": state.params, "frozen": state.frozen, "opt_state": state.opt_state}
    return sharding.replication_warning(mesh, held)


def sharded_new_state(
    abstract: TrainState, seed: int, *, variables: dict | None = None, **others: Any
) -> TrainState:
    """Step 0, each device making its own part, so that no device ever holds the whole.

    Args:
      abstract: of `abstract_state`, with the same arguments.
      seed: of what is drawn.
      variables: see `new_state`.
      **others: of `new_state`.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    def make(key, variables):
        return new_state(key, variables=variables, **others)

    return jax.jit(make, out_shardings=shardings)(jax.random.key(seed), variables)


def check_batch_statistics(cfg: TrainConfig, state: TrainState):
    """Refuse micro-batches whose normalisation would not be that of the whole batch.

    Args:
      state: abstract or not.

    Raises:
      ValueError: a tower that trains has batch statistics, and the run did not choose those of
        micro-batches; or it did, and that has no effect.
    """
    trained = state.batch_stats.keys() - state.frozen.keys()
    parts, ghost = cfg.data.accumulation, cfg.model.ghost_batch_norm
    if parts > 1 and trained and not ghost:
        raise ValueError(
            f"data.accumulation={parts} does not give the gradient of the whole batch, as the "
            f"{' and '.join(sorted(trained))} tower of {cfg.model.name} has batch normalisation, "
            "whose statistics would be those of each micro-batch: set data.accumulation to 1 and "
            "use more devices or model.remat, or accept it by model.ghost_batch_norm=true"
        )
    if ghost and not (parts > 1 and trained):
        raise ValueError(
            "model.ghost_batch_norm=True has no effect without data.accumulation above 1 and a "
            "trained tower with batch normalisation: leave it at False"
        )

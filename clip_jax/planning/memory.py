"""How much memory a device needs for a step, worked out from shapes: no compiler is asked."""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from clip_jax import sharding
from clip_jax.config import ModelConfig
from clip_jax.hardware import traced_for
from clip_jax.losses.objective import make_objective
from clip_jax.models.attention import kind_for_blocks
from clip_jax.models.clip import CLIP, abstract_inputs, init_variables
from clip_jax.models.tower import Tower
from clip_jax.planning.steps import Step

# Fitted to libtpu's peaks; docs/plan.md has the comparison. What a block computes and does not keep
# is only partly there at once, the less the more of it is kept.
SHARE_AT_WORK = {"none": 0.6, "dots": 0.35, "attention": 0.75, "full": 0.75}
# Gradients in float32, and some of the kernels' copies in bfloat16.
GRADIENTS = 1.15
Attention = Literal["fused", "plain", "padded"]  # how logits are kept: not, as they are, in tiles


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    parameters: int  # frozen ones, averages and batch statistics too
    optimizer: int
    batch: int
    activations: float  # kept from the forward pass for the backward pass
    working: float  # of the block that is at work, gradients, copies in bfloat16

    @property
    def peak(self) -> float:
        return self.parameters + self.optimizer + self.batch + self.activations + self.working


def estimate(step: Step, *, batch_size: int | None = None, device: Any | None = None) -> Memory:
    """What a step needs.

    Args:
      step: as it will be compiled.
      batch_size: another one than the step's, over all devices.
      device: that the attention is chosen for; None: the first of the step's mesh.
    """
    cfg, config = step.cfg, step.config
    batch = batch_size or cfg.data.batch_size
    rows = batch // step.mesh.size // cfg.data.accumulation
    kept, at_work = 0.0, loss_bytes(step, batch)
    for tower, tower_config in config.towers.items():
        depth = tower_config.depth or 16  # parts that take turns
        trained = 1.0
        if cfg.model.freeze == tower:
            trained = cfg.model.unlocked_blocks / depth
        if not trained:
            continue
        logits = logits_of(step, tower_config, device)
        bytes_of = functools.partial(saved_bytes, tower=tower, logits=logits)
        saved = bytes_of(config) * rows
        everything = bytes_of(dataclasses.replace(config, remat="none")) * rows
        kept += trained * tower_config.kept_share * saved
        computed = (everything - saved if config.remat != "none" else everything) / depth
        at_work = max(at_work, SHARE_AT_WORK[config.remat] * computed)
    gradients = sharding.bytes_per_device(step.state.params)
    return Memory(
        parameters=parameter_bytes(step),
        optimizer=optimizer_bytes(step),
        batch=sharding.bytes_per_device(step.batch) * batch // cfg.data.batch_size,
        activations=kept,
        working=at_work
        + GRADIENTS * gradients
        + gathered_bytes(step)
        + 4 * config.embed_dim * batch,
    )


def loss_bytes(step: Step, batch: int) -> float:
    """Logits and their gradient, in float32: of a device's rows, or of a tile of them.

    A ring without a tile keeps all logits of its rows besides, in three bytes each.
    """
    loss, rows = step.cfg.loss, batch // step.mesh.size
    ring = loss.distributed == "ring" and rows < batch
    kept = 0.0
    if ring and loss.tile is None:
        terms = make_objective(loss).terms
        kept = sum(term.loss.ring_bytes_per_pair for term in terms) * rows * batch
    tile = min(loss.tile or rows, rows)
    return kept + 2.0 * 4 * tile * (rows if ring else batch)


def gathered_bytes(step: Step) -> int:
    """Whole parameters on one device where they are split over "fsdp".

    Those of the block that is at work and of the next in bfloat16, and the gradients of one block
    and of the largest table in float32 before they are summed and split.
    """
    if step.mesh.shape["fsdp"] == 1:
        return 0
    towers: dict[str, int] = defaultdict(int)
    table = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.state.params):
        name = sharding.path_name(path)
        if "/blocks/" in name:
            towers[name.split("/")[0]] += math.prod(leaf.shape[1:])
        else:
            table = max(table, math.prod(leaf.shape))
    return 8 * max(towers.values(), default=0) + 4 * table


def parameter_bytes(step: Step) -> int:
    """Parameters, frozen ones, averages and batch statistics, on one device."""
    state = step.state
    return sharding.bytes_per_device((state.params, state.frozen, state.ema, state.batch_stats))


def optimizer_bytes(step: Step) -> int:
    return sharding.bytes_per_device(step.state.opt_state)


def logits_of(step: Step, tower: Tower, device: Any | None = None) -> Callable[[int], Attention]:
    """How logits (..., L, L) of a tower's blocks are kept, by L: as `models.attention` chooses.

    It raises ValueError for an attention that was asked for and that the device does not have.
    """
    asked, dtype = step.cfg.model.attention, step.config.dtype
    device = device or step.mesh.devices.flat[0]

    def kept(length: int) -> Attention:
        shape = (step.mesh.size, length, tower.width)
        with traced_for(device):
            kind = kind_for_blocks(asked, dtype, shape, heads=tower.heads, mesh=step.mesh)
        if kind != "plain":
            return "fused"
        return "padded" if device.platform == "tpu" else "plain"

    return kept if tower.depth else lambda length: "plain"


def saved_bytes(config: ModelConfig, *, tower: str, logits: Callable[[int], Attention]) -> int:
    """Bytes that one sample of a tower leaves for the backward pass, as JAX differentiates it."""
    one, two = (
        sum(_bytes(shape, itemsize, logits) for shape, itemsize in _saved(config, tower, batch))
        for batch in (1, 2)
    )
    return two - one  # what does not grow with the batch are parameters


@functools.lru_cache(maxsize=64)
def _saved(config: ModelConfig, tower: str, batch: int) -> list[tuple[tuple[int, ...], int]]:
    """Shapes of the arrays, and bytes of a number of each."""
    model = CLIP(config)
    images, tokens = abstract_inputs(config, batch)

    def similarity_vjp(variables, x):
        rest = {name: value for name, value in variables.items() if name != "params"}

        def embed(params):
            embedded, _ = model.apply(
                {"params": params, **rest},
                x,
                train=True,
                method=f"encode_{tower}",
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return embedded

        return jax.vjp(embed, variables["params"])[1]

    variables = jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))
    residuals = jax.eval_shape(similarity_vjp, variables, images if tower == "image" else tokens)
    return [(leaf.shape, leaf.dtype.itemsize) for leaf in jax.tree.leaves(residuals)]


def _bytes(shape: tuple[int, ...], itemsize: int, logits: Callable[[int], Attention]) -> int:
    size = math.prod(shape) * itemsize
    if len(shape) < 4 or shape[-1] != shape[-2]:
        return size
    # Weights of the attention (..., L, L), which a fused kernel never stores. A TPU lays them out
    # in tiles of 8 x 128; of other arrays it puts an axis last that is a multiple of that.
    L = shape[-1]
    padded = (-(-L // 8) * 8) * (-(-L // 128) * 128)
    return {"fused": 0, "plain": size, "padded": size // L**2 * padded}[logits(L)]

"""The mesh of devices, and where parameters, batches and activations live on it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.config import MeshConfig

AXES = ("data", "fsdp")
BATCH = P(AXES)  # batches are split over both axes; parameters over "fsdp" alone

SMALLEST = 2**12  # numbers of an array, below which it is split by its first choice or not at all
MOST_REPLICATED = 0.05  # of the bytes that "fsdp" is to split

Rows = Sequence[tuple[str, int]]  # (regular expression, axis that is split first)


def make_mesh(cfg: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Lay the devices out as ("data", "fsdp").

    Raises:
      ValueError: when the axes' sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(cfg, len(devices))
    # Explicit axes are JAX's default; under them a Linen convolution does not trace.
    axis_types = (AxisType.Auto,) * len(AXES)
    if cfg.slices > 1:
        # Parameters are gathered at every layer, so fsdp stays inside a slice, on its fast network.
        within = (shape[0] // cfg.slices, shape[1])
        attribute = _slice_attribute(cfg, devices)
        grid = mesh_utils.create_hybrid_device_mesh(
            within,
            (cfg.slices, 1),
            devices,
            process_is_granule=attribute == "process_index",
            allow_split_physical_axes=True,  # as `jax.make_mesh` does
        )
        return Mesh(grid, AXES, axis_types=axis_types)
    if devices[0].platform == "cpu":
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=axis_types)
    # A torus of 8x8x8 gives an fsdp of 16 too, by a part of one of its axes.
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=axis_types)


def _slice_attribute(cfg: MeshConfig, devices: list[jax.Device]) -> str:
    """What tells a device's slice: TPUs know it; elsewhere each process is one."""
    found = {
        name: len({getattr(device, name, 0) for device in devices})
        for name in ("slice_index", "process_index")
    }
    name = "slice_index" if found["slice_index"] > 1 else "process_index"
    if found[name] != cfg.slices:
        raise ValueError(
            f"mesh.slices={cfg.slices}, and the {len(devices)} devices lie in {found[name]} "
            f"(by their {name}): set mesh.slices to {found[name]}"
        )
    return name


def mesh_shape(cfg: MeshConfig, devices: int) -> tuple[int, int]:
    """The sizes of the axes ("data", "fsdp"), with -1 worked out."""
    sizes = {"mesh.data": cfg.data, "mesh.fsdp": cfg.fsdp}
    for name, size in {**sizes, "mesh.slices": cfg.slices}.items():
        if size < 1 and not (name == "mesh.data" and size == -1):
            raise ValueError(f"{name}={size} must be at least 1")
    data = devices // cfg.fsdp if cfg.data == -1 else cfg.data
    if data * cfg.fsdp != devices:
        raise ValueError(
            f"mesh.data={cfg.data} times mesh.fsdp={cfg.fsdp} does not make the {devices} devices "
            f"there are: set mesh.fsdp to a divisor of {devices} and leave mesh.data at -1"
        )
    if data % cfg.slices:
        raise ValueError(f"mesh.slices={cfg.slices} must divide the data axis of {data}")
    return data, cfg.fsdp


def check_batch(name: str, batch_size: int, mesh: Mesh, *, parts: int = 1):
    """Refuse a batch that does not divide over the devices (and their micro-batches)."""
    unit = mesh.size * parts
    if batch_size < 1 or batch_size % unit:
        nearest = max(unit, round(batch_size / unit) * unit)
        over = f"{mesh.size} devices" + (f" x {parts} micro-batches" if parts > 1 else "")
        raise ValueError(
            f"{name}={batch_size} does not divide over {over}: the nearest that does is {nearest}"
        )


def path_name(path: tuple) -> str:
    """A pytree path as one string: "image/transformer/blocks/mlp/up/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def parts_of(
    name: str, shape: tuple[int, ...], fsdp: int, *, rows: Rows = ()
) -> tuple[int, ...] | None:
    """Into how many parts "fsdp" splits each axis of a parameter; None: it stays whole.

    The first row whose expression is in the name gives the first choice. An axis that `fsdp` does
    not divide gives way to the largest that it does divide; where there is none, several axes are
    split, as far as they go. A matrix that no row names is split likewise; gains and biases are
    not. The first axis of a stack of blocks stays whole, as its layers are read one by one.
    """
    row = next((axis for pattern, axis in rows if re.search(pattern, name)), None)
    stacked = int("blocks/" in name)
    large = math.prod(shape) >= SMALLEST
    by_size = sorted(range(stacked, len(shape)), key=lambda axis: -shape[axis])
    is_matrix = len(by_size) > 1 and not re.search(r"(bias|scale)$", name)
    axes = []
    if row is not None and is_matrix:
        axes = [row % len(shape)] + (by_size if large else [])
    elif row is None and is_matrix and large:
        axes = by_size
    if fsdp == 1 or not axes:
        return None
    parts = [1] * len(shape)
    for axis in axes:
        if shape[axis] % fsdp == 0:
            parts[axis] = fsdp
            return tuple(parts)
    left = fsdp
    for axis in axes if large else ():
        parts[axis] *= math.gcd(shape[axis] // parts[axis], left)
        left = fsdp // math.prod(parts)
    return tuple(parts) if left < fsdp else None


def sharding_of(mesh: Mesh, parts: tuple[int, ...] | None) -> NamedSharding:
    """A parameter's sharding, from what `parts_of` gave."""
    fsdp = mesh.shape["fsdp"]
    if parts is None:
        return NamedSharding(mesh, P())
    if fsdp in parts:
        return NamedSharding(mesh, P(*("fsdp" if n == fsdp else None for n in parts)))
    # One axis of a mesh cannot split several of an array: here it is several, and the devices are
    # in the same order, so that the compiler sees one mesh. What they leave over holds copies.
    split = {f"fsdp_{axis}": n for axis, n in enumerate(parts) if n > 1}
    sizes = {"data": mesh.shape["data"], **split, "copies": fsdp // math.prod(parts)}
    view = Mesh(
        mesh.devices.reshape(*sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
    )
    names = (f"fsdp_{axis}" if n > 1 else None for axis, n in enumerate(parts))
    return NamedSharding(view, P(*names))


def shardings(mesh: Mesh, tree: Any, *, rows: Rows = ()) -> Any:
    """A `NamedSharding` for every leaf of a train state or of parameters.

    Optimizer states mirror the parameters' paths, so the same rows serve them.

    Args:
      mesh: of `make_mesh`.
      tree: of arrays or their shapes.
      rows: see `parts_of`.

    Raises:
      ValueError: when "fsdp" is larger than 1 and splits nothing.
    """
    fsdp = mesh.shape["fsdp"]
    found = jax.tree_util.tree_map_with_path(
        lambda path, leaf: sharding_of(
            mesh, parts_of(path_name(path), leaf.shape, fsdp, rows=rows)
        ),
        tree,
    )
    if fsdp > 1 and all(leaf.is_fully_replicated for leaf in jax.tree.leaves(found)):
        widths = sorted({size for leaf in jax.tree.leaves(tree) for size in leaf.shape})
        raise ValueError(
            f"mesh.fsdp={fsdp} divides no width of this model (sizes: {widths}), so it would split "
            "nothing: choose a divisor of the towers' widths, or 1"
        )
    return found


def replication_warning(mesh: Mesh, tree: Any) -> str | None:
    """What "fsdp" leaves whole of a tree with shardings, by name, where that is much.

    A leaf that is split into fewer parts than "fsdp" has counts by what a device holds too much.
    """
    fsdp = mesh.shape["fsdp"]
    if fsdp == 1:
        return None
    total, whole = 0, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        too_much = bytes_per_device(leaf) - size / fsdp
        total += size
        whole[path_name(path)] = too_much * fsdp / (fsdp - 1)
    replicated = sum(whole.values())
    if replicated <= MOST_REPLICATED * total:
        return None
    largest = sorted(whole, key=whole.__getitem__, reverse=True)[:4]
    names = ", ".join(f"{name} ({whole[name] / 2**20:,.1f} MiB)" for name in largest)
    return (
        f"mesh.fsdp={fsdp} leaves {replicated / 2**20:,.1f} of {total / 2**20:,.1f} MiB of the "
        f"state whole on each device, as it divides none of their axes or they have fewer than "
        f"{SMALLEST:_} entries: {names}, ...; choose an fsdp that divides the towers' widths, "
        "or name them in the tower's sharding_rows"
    )


def over_data(tree: Any, shardings: Any) -> Any:
    """Shardings that split each array over "data" as well, along its largest axis that allows it.

    For what no device needs whole, as the moments of an optimizer (ZeRO-1, arXiv:1910.02054).
    Small arrays stay as they are.

    Args:
      tree: of arrays or their shapes.
      shardings: those of each array without this.
    """

    def split(leaf, sharding: NamedSharding) -> NamedSharding:
        data, shard = sharding.mesh.shape["data"], sharding.shard_shape(leaf.shape)
        axes = [axis for axis in range(leaf.ndim) if shard[axis] % data == 0]
        if data == 1 or not axes or math.prod(leaf.shape) < SMALLEST:
            return sharding
        axis = max(axes, key=lambda axis: (shard[axis], axis))
        spec = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
        taken = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
        spec[axis] = tuple(name for name in (*taken, "data") if name)
        return NamedSharding(sharding.mesh, P(*spec))

    return jax.tree.map(split, tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


@dataclass(frozen=True)
class BatchConstraint:
    """Pins the first axis of an activation to the devices of a mesh.

    XLA does not partition a kernel, so the model finds the mesh for `jax.shard_map` here.
    """

    mesh: Mesh

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, batch_sharding(self.mesh))


def constrain_batch(mesh: Mesh) -> BatchConstraint:
    """What `CLIP` takes as `constrain`."""
    return BatchConstraint(mesh)


def to_global(mesh: Mesh, local: Any) -> Any:
    """This process's rows of a batch, as arrays over all devices of the mesh."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)


def bytes_per_device(tree: Any) -> int:
    """Of arrays or ShapeDtypeStructs that have shardings: what one device holds of them."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )

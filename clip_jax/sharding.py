"""The mesh of devices, and where parameters, batches and activations live on it."""

import math
import re
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

# Where the axes of a parameter go; the first match wins. Blocks have their depth as first axis.
# Every matrix is split along the width of the residual stream, so that one divisor serves all.
RULES = (
    (r"blocks/attention/qkv/kernel$", P(None, "fsdp", None)),
    (r"blocks/attention/out/kernel$", P(None, None, "fsdp")),
    (r"blocks/mlp/up/kernel$", P(None, "fsdp", None)),
    (r"blocks/mlp/down/kernel$", P(None, None, "fsdp")),
    (r"pool/(query|key|value|key_value)/kernel$", P("fsdp", None)),
    (r"pool/out/kernel$", P(None, "fsdp")),
    (r"pool/mlp/up/kernel$", P("fsdp", None)),
    (r"pool/mlp/down/kernel$", P(None, "fsdp")),
    (r"projection/kernel$", P("fsdp", None)),
    (r"(token|position)_embedding$", P(None, "fsdp")),
    (r"patch_embedding/kernel$", P(None, None, None, "fsdp")),
    (r"conv/kernel$", P(None, None, None, "fsdp")),
    (r".*", P()),
)


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


def parameter_spec(name: str, shape: tuple[int, ...], fsdp: int) -> P:
    """The first rule that fits. An axis that fsdp does not divide stays whole."""
    spec = next(spec for pattern, spec in RULES if re.search(pattern, name))
    if fsdp == 1 or "fsdp" not in spec or len(spec) != len(shape):
        return P()
    return spec if shape[spec.index("fsdp")] % fsdp == 0 else P()


def shardings(mesh: Mesh, tree: Any) -> Any:
    """A `NamedSharding` for every leaf of a train state or of parameters.

    Optimizer states mirror the parameters' paths, so the same rules place them.

    Raises:
      ValueError: when "fsdp" is larger than 1 and splits nothing.
    """
    fsdp = mesh.shape["fsdp"]
    specs = jax.tree_util.tree_map_with_path(
        lambda path, leaf: parameter_spec(path_name(path), leaf.shape, fsdp), tree
    )
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    if fsdp > 1 and not any("fsdp" in spec for spec in jax.tree.leaves(specs, is_leaf=is_spec)):
        widths = sorted({size for leaf in jax.tree.leaves(tree) for size in leaf.shape})
        raise ValueError(
            f"mesh.fsdp={fsdp} divides no width of this model (sizes: {widths}), so it would split "
            "nothing: choose a divisor of the towers' widths, or 1"
        )
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


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

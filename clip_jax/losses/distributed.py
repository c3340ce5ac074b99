"""How the devices see each other's texts: each has its rows of images, all need all columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clip_jax.losses.tiling import Block, is_reduction, merge, sweep_tiles

TORUS = "torus_"  # how the axes of a `torus_view` are named


def torus_view(mesh: Mesh) -> Mesh:
    """The devices of a mesh in their order, with one axis for each axis of a TPU's torus.

    XLA for TPUs scatters a sum along one axis of the torus; over several at once it sums all of it
    on every device, which sends twice as much. Other devices, and orders that do not follow the
    torus, keep their mesh.
    """
    devices = list(mesh.devices.flat)
    # GPUs of several machines have coordinates too, and their programs one mesh.
    if not all(each.platform == "tpu" and hasattr(each, "coords") for each in devices):
        return mesh
    sizes = torus_sizes([(getattr(device, "slice_index", 0), *device.coords) for device in devices])
    if not sizes:
        return mesh
    names = tuple(f"{TORUS}{number}" for number in range(len(sizes)))
    return Mesh(mesh.devices.reshape(sizes), names, axis_types=mesh.axis_types[:1] * len(sizes))


def torus_sizes(places: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape in which coordinates change along one axis each; () where they do not.

    Args:
      places: the coordinates of the devices in their order.
    """
    sizes = []  # from the axis that changes with every device outwards
    while len(places) > 1:
        changing = [i for i, (a, b) in enumerate(zip(*places[:2], strict=True)) if a != b]
        if len(changing) != 1:
            return ()
        axis = changing[0]
        along = [place[axis] for place in places]
        others = [place[:axis] + place[axis + 1 :] for place in places]
        size = next((n for n, other in enumerate(others) if other != others[0]), len(places))
        for start in range(0, len(places), size):
            block = slice(start, start + size)
            if along[block] != along[:size] or len(set(others[block])) > 1:
                return ()
        sizes.append(size)
        places = others[::size]
    return tuple(reversed(sizes))


@dataclass(frozen=True)
class SingleDevice:
    """One device has the whole batch."""

    tile: int | None  # rows' worth of similarities that are held at once; None: all
    axes: tuple[str, ...] = ()  # of the mesh, over which the batch is split

    def rows(self, image_BE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The device's images and their places in the batch."""
        first = jax.lax.axis_index(self.axes) * image_BE.shape[0] if self.axes else 0
        return image_BE, first + jnp.arange(image_BE.shape[0])

    def columns(self, text_BE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Texts as `sweep` wants them, and their places in the batch."""
        return self.rows(text_BE)

    def batch(self, count: int) -> int:
        """Pairs in the batch, of which each device has `count`."""
        return count * jax.lax.axis_size(self.axes) if self.axes else count

    @property
    def keeps(self) -> bool:
        """Whether what a block keeps is worth its memory.

        Where one block holds all that the device does, the compiler sees that both sweeps form the
        same matrix, and tiles are there to hold little.
        """
        return False

    def sweep(
        self, block: Block, rows: Any, columns: Any, kept: Any = None
    ) -> tuple[Any, Any, Any]:
        """`block` over the whole matrix: for the device's rows, for columns, and what is kept.

        Sums over a column come back to the device that has its text. Other reductions of columns
        come back where the next `sweep` wants them; `own` has those of the device's texts.
        """
        # Under a plain jit the rows may be split over devices, which nothing shows here.
        unknown = not self.axes and jax.device_count() > 1
        return sweep_tiles(block, rows, columns, self.tile, kept, all_rows=unknown)

    def own(self, columns: Any, count: int) -> Any:
        """Of what `columns` and `sweep` gave for columns, the part of the device's own texts."""
        return columns


@dataclass(frozen=True)
class Gather(SingleDevice):
    """Every device gets all texts and does one block of rows; column sums are reduced."""

    def columns(self, text_BE):
        text_BE = gather_all(text_BE, self.axes)
        return text_BE, jnp.arange(text_BE.shape[0])

    def sweep(self, block, rows, columns, kept=None):
        for_rows, for_columns, kept = super().sweep(block, rows, columns, kept)
        for_columns = jax.tree.map(self._reduce, for_columns, is_leaf=is_reduction)
        return for_rows, for_columns, kept

    def _reduce(self, part):
        if is_reduction(part):
            return part.over_devices(self.axes)
        one_by_one = all(axis.startswith(TORUS) for axis in self.axes)
        for axes in self.axes if one_by_one else (self.axes,):
            part = jax.lax.psum_scatter(part, axes, tiled=True)
        return part

    def own(self, columns, count):
        first = jax.lax.axis_index(self.axes) * count
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, count), columns)


@dataclass(frozen=True)
class Ring(SingleDevice):
    """Texts travel round the devices; each has one device's texts at a time."""

    @property
    def keeps(self):
        return self.tile is None

    def sweep(self, block, rows, columns, kept=None):
        devices = jax.lax.axis_size(self.axes)
        following = [(i, (i - 1) % devices) for i in range(devices)]
        kept_first, kept_others = (None, None) if kept is None else kept

        def pass_on(tree):
            return jax.tree.map(lambda a: jax.lax.ppermute(a, self.axes, following), tree)

        def step(carry, kept):
            for_rows, for_columns, columns = carry
            # None of the three depends on another, so what moves does so during the computation.
            arriving = pass_on(columns)
            for_columns = pass_on(for_columns)
            *more, kept = sweep_tiles(block, rows, columns, self.tile, kept)
            return (merge(for_rows, more[0]), merge(for_columns, more[1]), arriving), kept

        arriving = pass_on(columns)
        *found, kept_first = sweep_tiles(block, rows, columns, self.tile, kept_first)
        (for_rows, for_columns, _), kept_others = jax.lax.scan(
            step, (*found, arriving), kept_others, length=devices - 1
        )
        return for_rows, pass_on(for_columns), (kept_first, kept_others)


STRATEGIES = {"gather": Gather, "ring": Ring}


def gather_all(x_BE: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The rows of all devices."""
    return jax.lax.all_gather(x_BE, axes, tiled=True) if axes else x_BE


def make_strategy(name: str, axes: tuple[str, ...], tile: int | None) -> SingleDevice:
    """The strategy over the axes given; one device needs no communication."""
    if not axes or jax.lax.axis_size(axes) == 1:
        return SingleDevice(tile, axes)
    return STRATEGIES[name](tile, axes)

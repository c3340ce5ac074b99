"""Which devices of the mesh a collective joins."""

import re
from collections.abc import Sequence

import numpy as np


def replica_group(attributes: str) -> tuple[int, ...]:
    """The first group of a collective, as positions in the mesh. Groups of one kind are alike.

    HLO writes them in full, `{{0,1},{2,3}}`, as an iota, `[2,2]<=[4]` or `[2,2]<=[2,2]T(1,0)`, or
    by the axes of a mesh, `mesh['a'=2,'b'=2] {'b'}`, whose devices may be turned,
    `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}`. A permutation has pairs instead.
    """
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return tuple(sorted({int(n) for n in re.findall(r"\d+", pairs.group(1))}))
    if full := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return tuple(int(n) for n in full.group(1).split(","))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, source, order = ([int(n) for n in (g or "").split(",") if n] for g in iota.groups())
        ids = np.arange(np.prod(source)).reshape(source)
        ids = ids.transpose(order) if order else ids
        return tuple(int(n) for n in ids.reshape(shape)[0])
    named = re.search(
        r"replica_groups=@?mesh\w*\[([^\]]*)\](?:, device_ids=\(([^\s{]*)\))? \{([^}]*)\}",
        attributes,
    )
    if named:
        return _named_group(*named.groups())
    assert "replica_groups" not in attributes, attributes
    return (0,)


def _named_group(axes: str, order: str | None, used: str) -> tuple[int, ...]:
    """By named axes; `'a':(2)4` is the part of 4 of axis a that comes after a factor of 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([\w.]+)'=(\d+)", axes)}
    ids = _device_ids(order, int(np.prod(list(sizes.values())))).reshape(list(sizes.values()))
    kept: list[slice | int] = [0] * ids.ndim
    for name, before, part in re.findall(r"'([\w.]+)'(?::\((\d+)\)(\d+))?", used):
        axis = list(sizes).index(name)
        after = sizes[name] // (int(before) * int(part)) if part else 1
        kept[axis] = slice(0, int(part) * after, after) if part else slice(None)
    return tuple(int(n) for n in ids[tuple(kept)].ravel())


def _device_ids(order: str | None, count: int) -> np.ndarray:
    """The devices of a named mesh: in order, as `[4,2]T(1,0)` turns them, or in full."""
    if order is None:
        return np.arange(count)
    turned = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
    if turned is None:
        return np.array([int(n) for n in re.findall(r"\d+", order)])
    shape, axes = ([int(n) for n in (part or "").split(",") if n] for part in turned.groups())
    ids = np.arange(count).reshape(shape)
    return ids.transpose(axes) if axes else ids


def axes_of(group: Sequence[int], mesh_shape: tuple[int, int]) -> str:
    """The axes ("data", "fsdp") along which the devices of a group differ, such as "data+fsdp"."""
    places = np.array(np.unravel_index(np.asarray(group), mesh_shape))
    moving = [len(set(row)) > 1 for row in places.tolist()]
    return "+".join(name for name, moves in zip(("data", "fsdp"), moving) if moves) or "none"


def slices_in(group: Sequence[int], devices_per_slice: int) -> int:
    """How many slices the group spans; slices are the outermost part of the data axis."""
    return len({device // devices_per_slice for device in group})

"""How long a step takes at best: what it computes, moves and sends, at the makers' speeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.planning.hlo.collectives import Collective
from clip_jax.planning.hlo.module import Program, Work
from clip_jax.planning.topologies import Topology


@dataclass(frozen=True)
class StepTime:
    """Seconds of one device."""

    compute: float  # of the operations that arithmetic limits
    memory: float  # of those that reading and writing memory limits
    exposed: float  # of collectives while which nothing else runs
    hidden: float  # of those that run beside the rest, as far as it lasts

    @property
    def interconnect(self) -> float:
        """Of all collectives, one after another."""
        return self.exposed + self.hidden

    @property
    def seconds(self) -> float:
        return max(self.compute + self.memory, self.hidden) + self.exposed

    @property
    def bound(self) -> str:
        """What takes the most time: compute, memory or interconnect."""
        if self.interconnect > self.compute + self.memory:
            return "interconnect"
        return "compute" if self.compute >= self.memory else "memory"


def step_time(
    program: Program, topology: Topology, devices: Sequence[Any], *, tiled: bool = False
) -> StepTime:
    """The least that a program takes on these devices, which stand in the order of the mesh.

    Operations run one after another, each as long as its arithmetic or its traffic lasts. Copies
    that run beside them use the memory while arithmetic limits the others.

    Args:
      program: of one device.
      topology: of the devices.
      devices: all of the mesh.
      tiled: with arrays in whole tiles, and products filled up to the chip's matrix units.
    """
    compute = memory = idle = copies = 0.0
    for work in program.work:
        arithmetic, traffic = _seconds(work, topology, tiled)
        if work.background and not arithmetic:
            copies += work.count * traffic
        elif arithmetic >= traffic:
            compute += work.count * arithmetic
            idle += work.count * (arithmetic - traffic)
        else:
            memory += work.count * traffic
    places = places_of(topology, devices)
    sent = {True: 0.0, False: 0.0}
    for each in program.collectives:
        sent[each.synchronous] += each.count * collective_seconds(each, topology, places)
    return StepTime(compute, memory + max(copies - idle, 0.0), sent[True], sent[False])


def compiler_seconds(program: Program, topology: Topology, least: StepTime) -> float | None:
    """By the compiler's own estimate of cycles; None where it has none or the clock is not known.

    It has none of kernels and collectives, which are taken to last as long as in `least`.
    """
    if not program.cycles or topology.chip.clock_ghz is None:
        return None
    unknown = sum(
        work.count * max(_seconds(work, topology, tiled=True))
        for work in program.work
        if work.cycles is None and not work.background
    )
    ran = program.cycles / (topology.chip.clock_ghz * 1e9) + unknown
    return max(ran, least.hidden) + least.exposed


def _seconds(work: Work, topology: Topology, tiled: bool) -> tuple[float, float]:
    """Of one operation's arithmetic and of its traffic."""
    chip = topology.chip
    flops = work.flops + chip.tflops / chip.float32_tflops * work.float32_flops
    moved = work.bytes
    if tiled:
        flops *= work.padding(chip.matrix_unit)
        moved = work.bytes if work.tiled_bytes is None else work.tiled_bytes
    return flops / chip.device_flops, moved / (chip.memory_gbps * 1e9 / chip.devices)


def places_of(topology: Topology, devices: Sequence[Any]) -> np.ndarray:
    """Slice and coordinates of each device: (devices, 1 + axes)."""
    if topology.chip.kind == "gpu":
        index = np.arange(topology.devices)
        return np.stack([index // topology.shape[0], index % topology.shape[0]], axis=1)
    axes = len(topology.shape)
    return np.array(
        [(getattr(d, "slice_index", 0) or 0, *d.coords[:axes]) for d in devices], dtype=int
    )


def collective_seconds(collective: Collective, topology: Topology, places: np.ndarray) -> float:
    """Of one collective over fast links inside a slice, then over the network between slices.

    A ring passes (n - 1) / n of the whole array through each device, an all-reduce twice.
    """
    group = places[list(collective.group)]
    n, chip = len(group), topology.chip
    if n == 1:
        return 0.0
    if collective.kind == "collective-permute":
        slow = len(set(group[:, 0].tolist())) > 1
        speed = chip.network_gbps if slow else chip.link_gbps
        return collective.bytes / (speed * 1e9 / chip.devices)
    passes = 2.0 if collective.kind == "all-reduce" else 1.0
    slices = len(set(group[:, 0].tolist()))
    inside = n // slices
    seconds = 0.0
    links = links_of(group[group[:, 0] == group[0, 0]][:, 1:], topology)
    if inside > 1 and links:
        speed = links * chip.link_gbps * 1e9 / chip.devices
        seconds += passes * collective.bytes * (inside - 1) / inside / speed
    if slices > 1:
        share = collective.bytes / inside
        speed = chip.network_gbps * 1e9 / chip.devices
        seconds += passes * share * (slices - 1) / slices / speed
    return seconds


def links_of(coordinates: np.ndarray, topology: Topology) -> float:
    """Links of a chip that a group inside a slice can use: two on an axis that it goes round."""
    if topology.chip.kind == "gpu":
        return 1.0 if len(coordinates) > 1 else 0.0
    links = 0.0
    for axis, (length, wraps) in enumerate(topology.wrap):
        met = len(set(coordinates[:, axis].tolist()))
        if met > 1:
            links += 2.0 if wraps and met == length else 1.0
    return links

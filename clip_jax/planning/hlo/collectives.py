"""Collectives of an HLO module: what they send, to whom, and whether other work hides them."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clip_jax.planning.hlo.groups import replica_group
from clip_jax.planning.hlo.text import Computation, Instruction, arrays_of
from clip_jax.planning.hlo.traffic import FREE

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Collective:
    """Devices exchange data, `count` times in a step."""

    kind: str  # one of COLLECTIVES
    group: tuple[int, ...]  # the devices that meet, as positions in the mesh
    bytes: int  # of the whole array: gathered, reduced or scattered, on one device
    dtype: str
    count: int
    source: str  # the operation that it came from
    synchronous: bool = False  # nothing else runs meanwhile


def collectives_of(
    instruction: Instruction,
    computation: Computation,
    called: Sequence[Computation],
    count: int,
    *,
    background: bool = False,
) -> Iterator[Collective]:
    """The collective that an instruction is or that begins in it; `background`: others run beside.

    XLA splits a collective that it hides behind other work into fusions that all name it. It is
    counted in the one where it starts.
    """
    if instruction.opcode == "fusion":
        for inner in called:
            if any("AsyncCollectiveStart" in each.attributes for each in inner.instructions):
                for each in inner.instructions:
                    yield from _read(each, inner, count, False)
        return
    alone = not background and runs_alone(instruction, computation)
    yield from _read(instruction, computation, count, alone)


def runs_alone(started: Instruction, computation: Computation) -> bool:
    """Whether nothing is scheduled between an operation's start and its end."""
    done = [each for each in computation.users(started.name) if each.opcode.endswith("-done")]
    if not done:
        return not started.opcode.endswith("-start") and started.opcode != "send"
    names = [each.name for each in computation.instructions]
    between = computation.instructions[names.index(started.name) + 1 : names.index(done[0].name)]
    return all(_only_waits(each.opcode) for each in between)


def _only_waits(opcode: str) -> bool:
    return opcode in FREE or opcode in ("send", "recv") or opcode.endswith(("-start", "-done"))


def _read(
    instruction: Instruction, computation: Computation, count: int, synchronous: bool
) -> Iterator[Collective]:
    kind = instruction.opcode.removesuffix("-start")
    if kind == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
        kind, group = _between_slices(instruction)
    elif kind in COLLECTIVES:
        group = replica_group(instruction.attributes)
    else:
        return
    by_dtype: dict[str, int] = defaultdict(int)
    for name in instruction.operands:
        for array in arrays_of(computation.type_of(name)):
            if array.dtype != "token":
                by_dtype[array.dtype] += array.bytes
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    source = found.group(1) if found else ""
    for dtype, size in by_dtype.items():
        whole = size * len(group) if kind == "all-gather" else size
        yield Collective(kind, group, whole, dtype, count, source, synchronous)


def _between_slices(send: Instruction) -> tuple[str, tuple[int, ...]]:
    """A collective over the network that joins slices, which TPU programs write as a send.

    Its target is `{1,2}x{0:255}`, the slices and the devices of each; a device meets its likes.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.attributes).group(1)
    slices, last = re.search(
        r'_xla_megascale_target="\{([\d,]+)\}x\{\d+:(\d+)\}"', send.attributes
    ).groups()
    inside = int(last) + 1
    group = tuple(place * inside for place in range(slices.count(",") + 1))
    return kind.lower().replace("_", "-"), group

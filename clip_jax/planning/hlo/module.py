"""Reads an optimized HLO module: what one device computes, moves and sends in a step.

XLA's own cost analysis counts the body of a loop once. Here each loop counts as often as it runs.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from clip_jax.planning.hlo import convolutions
from clip_jax.planning.hlo.gpu_kernels import kernel_flops, kernel_name
from clip_jax.planning.hlo.groups import replica_group
from clip_jax.planning.hlo.text import Computation, Instruction, Module, arrays_of, bytes_of

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# They name a value and move nothing.
FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "domain",
    ]
)
# Of "output_to_operand_aliasing={{1}: (0, {}), {2}: (3, {})}" the operands.
_PASSED_ON = re.compile(r"\{\d*\}: \((\d+), \{\}\)")


@dataclass(frozen=True)
class Collective:
    """Devices exchange data, `count` times in a step."""

    kind: str  # one of COLLECTIVES
    group: tuple[int, ...]  # the devices that meet, as positions in the mesh
    bytes: int  # of the whole array: gathered, reduced or scattered, on one device
    dtype: str
    count: int
    source: str  # the operation that it came from


@dataclass(frozen=True)
class Work:
    """One operation of the schedule, `count` times in a step."""

    flops: float  # of matrix products and convolutions in bfloat16
    float32_flops: float  # of those that are asked to be exact in float32
    bytes: float  # read from and written to HBM
    count: int


@dataclass
class Program:
    """What one device does in a step."""

    work: list[Work] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)  # of a GPU's libraries and of Triton

    @property
    def flops(self) -> float:
        """Of all matrix products and convolutions."""
        return sum((w.flops + w.float32_flops) * w.count for w in self.work)

    @property
    def float32_flops(self) -> float:
        return sum(w.float32_flops * w.count for w in self.work)

    @property
    def bytes(self) -> float:
        return sum(w.bytes * w.count for w in self.work)


Traffic = Callable[[Instruction, Computation, list[Computation]], float]


def read_program(text: str, *, traffic: Traffic | None = None) -> Program:
    """The work and the collectives of a partitioned HLO module.

    Args:
      text: of the module; optimized, unless `traffic` says otherwise.
      traffic: bytes that an instruction moves; None: each one reads and writes memory.
    """
    module = Module(text)
    program = Program()
    _walk(module, module.entry, 1, program, traffic or _traffic)
    return program


def _walk(module: Module, computation: Computation, count: int, program: Program, traffic: Traffic):
    for instruction in computation.instructions:
        called = [module.computations[name] for name in instruction.called]
        if instruction.opcode == "while":
            trips = trip_count(module, instruction)
            body = module.computations[instruction.attribute("body")]
            _walk(module, body, count * trips, program, traffic)
        elif instruction.opcode in ("call", "conditional", "async-start"):
            for inner in called:
                _walk(module, inner, count, program, traffic)
        else:
            flops, exact = _flops(module, instruction, computation)
            moved = traffic(instruction, computation, called)
            if kernel := kernel_name(instruction):
                program.kernels[kernel] += count
            if flops or exact or moved:
                program.work.append(Work(flops, exact, moved, count))
        for collective in _collectives(instruction, computation, called, count):
            program.collectives.append(collective)


def trip_count(module: Module, loop: Instruction) -> int:
    """How often a loop runs: XLA's note where there is one, else the bound that it compares with."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(noted.group(1))
    condition = module.computations[loop.attribute("condition")]
    bounds = []
    for instruction in condition.instructions:
        if instruction.opcode == "constant" and instruction.type.startswith(("s32[]", "u32[]")):
            bounds.append(int(instruction.operands_text))
    return max(bounds, default=1)


# ------------------------------------------------------------------------------------- FLOPs


def _flops(
    module: Module, instruction: Instruction, computation: Computation
) -> tuple[float, float]:
    """Operations of an instruction and all that is fused into it: ordinary ones and exact ones."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.attribute("calls")]
        parts = [_flops(module, each, inner) for each in inner.instructions]
        return sum(a for a, _ in parts), sum(b for _, b in parts)
    if instruction.opcode == "custom-call":
        return kernel_flops(instruction, computation)
    if instruction.opcode == "dot":
        flops = convolutions.dot_flops(instruction, computation)
    elif instruction.opcode == "convolution":
        flops = convolutions.convolution_flops(instruction, computation)
    else:
        return 0.0, 0.0
    exact = "operand_precision={highest" in instruction.rest
    return (0.0, flops) if exact else (flops, 0.0)


# ----------------------------------------------------------------------------------- traffic


def _traffic(
    instruction: Instruction, computation: Computation, called: list[Computation]
) -> float:
    """Bytes between the chip and its memory: what goes in and what comes out.

    A fusion that takes a slice of an operand reads the slice, and one that writes a slice into an
    operand in place writes the slice: so are the stacked parameters of a loop read and written.
    What a fusion only passes on costs nothing: the buffers of a collective that goes on meanwhile.
    """
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0.0
    inner = called[0] if instruction.opcode == "fusion" and called else None
    if inner is None:
        if instruction.opcode in ("dynamic-slice", "slice"):
            return 2 * bytes_of(instruction.type)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * bytes_of(computation.type_of(instruction.operands[1]))
        read = sum(bytes_of(computation.type_of(name)) for name in instruction.operands)
        return read + bytes_of(instruction.type)
    parameters = {int(p.operands_text): p for p in inner.instructions if p.opcode == "parameter"}
    passed_on = {int(index) for index in _PASSED_ON.findall(instruction.rest)}
    read, in_place = 0.0, 0.0
    for index, name in enumerate(instruction.operands):
        whole = bytes_of(computation.type_of(name))
        if index in passed_on:
            in_place += whole
            continue
        share, updated = _share_used(inner, parameters[index]) if index in parameters else (1, 0)
        read += whole * share
        in_place += whole * updated
    # What is written in place is as large as what is not read of it.
    return read + max(bytes_of(instruction.type) - in_place, 0.0)


def _share_used(inner: Computation, parameter: Instruction) -> tuple[float, float]:
    """The share of a fusion's operand that it reads, and the share that it leaves as it is."""
    size = _elements(parameter.type)
    read, kept = 0.0, 0.0
    pending = [parameter.name]
    while pending:
        for user in inner.users(pending.pop()):
            if user.opcode in ("bitcast", "reshape"):
                pending.append(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather"):
                read += _elements(user.type)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] in (
                parameter.name,
                *inner.same_as(parameter.name),
            ):
                kept += size - _elements(inner.type_of(user.operands[1]))
            else:
                return 1.0, 0.0
    return min(read / size, 1.0) if size else 1.0, min(kept / size, 1.0) if size else 0.0


def _elements(type_text: str) -> int:
    return sum(math.prod(array.dims) for array in arrays_of(type_text))


# ------------------------------------------------------------------------------- collectives


def _collectives(
    instruction: Instruction, computation: Computation, called: list[Computation], count: int
) -> Iterator[Collective]:
    """The collective that an instruction is or that begins in it.

    XLA splits a collective that it hides behind other work into fusions that all name it. It is
    counted in the one where it starts.
    """
    if instruction.opcode == "fusion":
        for inner in called:
            if any("AsyncCollectiveStart" in each.rest for each in inner.instructions):
                for each in inner.instructions:
                    yield from _collectives(each, inner, [], count)
        return
    kind = instruction.opcode.removesuffix("-start")
    if kind == "send" and "_xla_megascale_transfer_type" in instruction.rest:
        kind, group = _between_slices(instruction)
    elif kind in COLLECTIVES:
        group = replica_group(instruction.rest)
    else:
        return
    by_dtype: dict[str, int] = defaultdict(int)
    for name in instruction.operands:
        for array in arrays_of(computation.type_of(name)):
            if array.dtype != "token":
                by_dtype[array.dtype] += array.bytes
    source = re.search(r'op_name="([^"]*)"', instruction.rest)
    for dtype, size in by_dtype.items():
        whole = size * len(group) if kind == "all-gather" else size
        yield Collective(kind, group, whole, dtype, count, source.group(1) if source else "")


def _between_slices(send: Instruction) -> tuple[str, tuple[int, ...]]:
    """A collective over the network that joins slices, which TPU programs write as a send.

    Its target is `{1,2}x{0:255}`, the slices and the devices of each; a device meets its likes.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.rest).group(1)
    slices, last = re.search(
        r'_xla_megascale_target="\{([\d,]+)\}x\{\d+:(\d+)\}"', send.rest
    ).groups()
    inside = int(last) + 1
    group = tuple(place * inside for place in range(slices.count(",") + 1))
    return kind.lower().replace("_", "-"), group

"""Reads an optimized HLO module: what one device computes, moves and sends in a step.

XLA's own cost analysis counts the body of a loop once. Here each loop counts as often as it runs.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from clip_jax.planning.hlo.collectives import Collective, collectives_of, runs_alone
from clip_jax.planning.hlo.convolutions import Product, product_of
from clip_jax.planning.hlo.gpu_kernels import kernel_flops, kernel_name
from clip_jax.planning.hlo.kernels import is_kernel, kernel_bytes, stated_cost
from clip_jax.planning.hlo.text import Computation, Instruction, Module
from clip_jax.planning.hlo.traffic import moved_bytes

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclass(frozen=True)
class Work:
    """One operation of the schedule, `count` times in a step."""

    flops: float  # of matrix products and convolutions in bfloat16
    float32_flops: float  # of those that are asked to be exact in float32
    bytes: float  # read from and written to HBM
    count: int
    tiled_bytes: float | None = None  # as stored, in whole tiles; None: as `bytes`
    products: tuple[Product, ...] = ()  # whose operations these are; none of a kernel's
    cycles: int | None = None  # that the compiler reckons with
    background: bool = False  # a copy that other operations run beside

    def padding(self, unit: int | None) -> float:
        """How many times its operations a matrix unit of that size works through."""
        flops = sum(product.flops for product in self.products)
        if unit is None or not flops:
            return 1.0
        return sum(product.padded_flops(unit) for product in self.products) / flops


@dataclass
class Program:
    """What one device does in a step."""

    work: list[Work] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)  # of a GPU's libraries and of Triton
    unpriced: list[str] = field(default_factory=list)  # kernels that state no operations

    @property
    def flops(self) -> float:
        """Of all matrix products, convolutions and kernels."""
        return sum((w.flops + w.float32_flops) * w.count for w in self.work)

    @property
    def float32_flops(self) -> float:
        return sum(w.float32_flops * w.count for w in self.work)

    @property
    def bytes(self) -> float:
        return sum(w.bytes * w.count for w in self.work)

    @property
    def tiled_bytes(self) -> float:
        return sum(
            (w.bytes if w.tiled_bytes is None else w.tiled_bytes) * w.count for w in self.work
        )

    @property
    def cycles(self) -> int:
        """By the compiler's own estimate; it has none of kernels, copies and collectives."""
        return sum((w.cycles or 0) * w.count for w in self.work)

    def padded_flops(self, unit: int | None) -> float:
        """What matrix units of `unit` x `unit` places work through."""
        return sum((w.flops + w.float32_flops) * w.padding(unit) * w.count for w in self.work)


Traffic = Callable[[Instruction, Computation, list[Computation]], float]


def read_program(text: str, *, traffic: Traffic | None = None) -> Program:
    """The work and the collectives of a partitioned HLO module.

    Args:
      text: of the module; optimized, unless `traffic` says otherwise.
      traffic: bytes that an instruction moves; None: each one reads and writes memory.
    """
    module = Module(text)
    program = Program()
    _walk(module, module.entry, 1, program, traffic)
    return program


def _walk(
    module: Module,
    computation: Computation,
    count: int,
    program: Program,
    traffic: Traffic | None,
    *,
    background: bool = False,
):
    """Of a computation that runs `count` times; `background`: beside the one that started it."""
    for instruction in computation.instructions:
        called = [module.computations[name] for name in instruction.called]
        if instruction.opcode == "while":
            trips = trip_count(module, instruction)
            body = module.computations[instruction.attribute("body")]
            _walk(module, body, count * trips, program, traffic, background=background)
        elif instruction.opcode in ("call", "conditional", "async-start"):
            beside = background
            if instruction.opcode == "async-start":
                beside = not runs_alone(instruction, computation)
            for inner in called:
                _walk(module, inner, count, program, traffic, background=beside)
        else:
            beside = background or instruction.opcode == "copy-start"
            work = _work(module, instruction, computation, count, traffic, background=beside)
            if work.flops or work.float32_flops or work.bytes or work.cycles:
                program.work.append(work)
            if kernel := kernel_name(instruction):
                program.kernels[kernel] += count
            if is_kernel(instruction) and stated_cost(instruction, "flops") is None:
                program.unpriced.append(instruction.name)
        program.collectives += collectives_of(
            instruction, computation, called, count, background=background
        )


def _work(
    module: Module,
    instruction: Instruction,
    computation: Computation,
    count: int,
    traffic: Traffic | None,
    *,
    background: bool,
) -> Work:
    products = _products(module, instruction, computation)
    flops, float32_flops = kernel_flops(instruction, computation)
    flops += sum(product.flops for product, exact in products if not exact)
    float32_flops += sum(product.flops for product, exact in products if exact)
    if traffic:
        called = [module.computations[name] for name in instruction.called]
        moved = tiled = traffic(instruction, computation, called)
    elif is_kernel(instruction):
        flops = stated_cost(instruction, "flops") or 0.0
        moved, tiled = (kernel_bytes(instruction, computation, tiled=t) for t in (False, True))
    else:
        moved, tiled = (
            moved_bytes(module, instruction, computation, tiled=t) for t in (False, True)
        )
    cycles = _CYCLES.search(instruction.attributes)
    return Work(
        flops=flops,
        float32_flops=float32_flops,
        bytes=moved,
        count=count,
        tiled_bytes=tiled,
        products=tuple(product for product, _ in products),
        cycles=int(cycles.group(1)) if cycles else None,
        background=background,
    )


def _products(
    module: Module, instruction: Instruction, computation: Computation
) -> list[tuple[Product, bool]]:
    """Those of an instruction and of all that is fused into it, and whether each must be exact."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.attribute("calls")]
        return [found for each in inner.instructions for found in _products(module, each, inner)]
    if instruction.opcode not in ("dot", "convolution"):
        return []
    exact = "operand_precision={highest" in instruction.attributes
    return [(product_of(instruction, computation), exact)]


def trip_count(module: Module, loop: Instruction) -> int:
    """How often a loop runs: XLA's note where there is one, else the bound that it compares with."""
    if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(noted.group(1))
    condition = module.computations[loop.attribute("condition")]
    bounds = []
    for instruction in condition.instructions:
        if instruction.opcode == "constant" and instruction.type.startswith(("s32[]", "u32[]")):
            bounds.append(int(instruction.operands_text))
    return max(bounds, default=1)

"""Reads a program that is split over devices and not optimized yet: what a GPU would be given.

The CPU's compiler splits a program over any number of devices as the GPU's does, but then fuses
and rounds it for a CPU. So its text is read before that, and the traffic to memory is estimated.
"""

import dataclasses
import re

import jax

from clip_jax.planning.hlo.dump import compile_with_dump
from clip_jax.planning.hlo.module import Program, Work, read_program
from clip_jax.planning.hlo.text import Computation, Instruction, bytes_of


def compile_for_text(lowered: jax.stages.Lowered) -> str:
    """The text of the program of one device, after partitioning and before optimization."""
    # The machine code is thrown away, so it need not be good.
    options = {"xla_dump_hlo_pass_re": "spmd-partitioning", "xla_backend_optimization_level": 0}
    with compile_with_dump(lowered, **options) as (_, folder):
        found = sorted(folder.glob("*after_spmd-partitioning*"))
        if not found:  # for one device there is nothing to split
            found = sorted(folder.glob("*before_optimizations.txt"))
        return found[-1].read_text()


def read_partitioned(text: str, *, fused_attention: bool) -> Program:
    """Work and collectives of such a program.

    Between two matrix products stand element-wise operations and reductions, which a compiler
    fuses: each factor and each result is taken to be written once and read once.

    Args:
      text: of `compile_for_text`.
      fused_attention: the backend never writes the attention's logits to memory.
    """

    def traffic(instruction: Instruction, computation: Computation, _: list[Computation]) -> float:
        if instruction.opcode not in ("dot", "convolution"):
            return 0.0
        names = instruction.operands[:2]
        sizes = [bytes_of(computation.type_of(name)) for name in names]
        sizes.append(_stored_bytes(instruction, computation))
        batched = re.search(r"lhs_batch_dims=\{\d", instruction.attributes)
        if fused_attention and batched:
            sizes.remove(max(sizes))
        return 2.0 * sum(sizes)

    program = read_program(text, traffic=traffic)
    # Nothing is scheduled yet: what runs beside what is for the compiler to find.
    hidden = (dataclasses.replace(each, synchronous=False) for each in program.collectives)
    return dataclasses.replace(program, collectives=list(hidden))


def _stored_bytes(product: Instruction, computation: Computation) -> int:
    """Of a product's result; the rounding that follows a sum in float32 is part of the product."""
    users = computation.users(product.name)
    rounded = users and all(user.opcode == "convert" for user in users)
    return bytes_of(users[0].type if rounded else product.type)


def update_work(parameters: int, optimizer: int) -> Work:
    """The optimizer's: all of its state is read and written, and the gradients are read."""
    return Work(0.0, 0.0, 2.0 * (parameters + optimizer) + parameters, 1)

"""Kernels in TPU programs (Pallas, Mosaic): the compiler knows only what their authors say of them."""

import re

from clip_jax.planning.hlo.text import Computation, Instruction, arrays_of, bytes_of
from clip_jax.planning.hlo.traffic import target_of


def is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and target_of(instruction) == "tpu_custom_call"


def stated_cost(kernel: Instruction, name: str) -> float | None:
    """Of a kernel's `cost_estimate`: "flops" or "bytes_accessed"; None where it states none."""
    estimate = re.search(r'"cost_estimate":\{([^}]*)\}', kernel.attributes)
    found = re.search(rf'"{name}":"?(\d+)', estimate.group(1)) if estimate else None
    return float(found.group(1)) if found else None


def kernel_bytes(kernel: Instruction, computation: Computation, *, tiled: bool = False) -> float:
    """What it says that it moves, as far as its operands and results lie in HBM; else all of them."""
    types = [kernel.type, *(computation.type_of(name) for name in kernel.operands)]
    in_hbm = sum(bytes_of(each, tiled=tiled) for each in types)
    stated = stated_cost(kernel, "bytes_accessed")
    everything = sum(array.bytes for each in types for array in arrays_of(each))
    return stated * in_hbm / everything if stated and everything else float(in_hbm)

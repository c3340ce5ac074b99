"""The kernels of XLA's GPU programs: cuDNN's attention, and products by cuBLAS or Triton."""

import math
import re

from clip_jax.planning.hlo.convolutions import product_of_arrays
from clip_jax.planning.hlo.text import Computation, Instruction, arrays_of
from clip_jax.planning.hlo.traffic import target_of

# Products of an attention, each of 2 B N L M K operations: two forward, five backward.
_ATTENTION_PRODUCTS = {"forward": 2, "backward": 5}


def kernel_name(instruction: Instruction) -> str:
    """What runs an instruction, where that is a library's or Triton's kernel; else nothing."""
    if instruction.opcode == "custom-call":
        target = target_of(instruction)
        if target.startswith("__cudnn$fmha"):
            return f"cuDNN attention, {_direction(target)}"
        if target.startswith("__cublas$"):
            return "cuBLAS product"
        if target.startswith("__cudnn$conv"):
            return "cuDNN convolution"
    if instruction.opcode == "fusion":
        kind = re.search(r'"kind":"(\w*gemm\w*)"', instruction.attributes)
        return "Triton product" if kind else ""
    return ""


def kernel_flops(instruction: Instruction, computation: Computation) -> tuple[float, float]:
    """Floating-point operations of a library's kernel: ordinary ones, and exact ones of float32."""
    target = target_of(instruction) if instruction.opcode == "custom-call" else ""
    if target.startswith("__cudnn$fmha"):
        dims = re.search(
            r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]', instruction.attributes
        )
        logits = math.prod(int(n) for n in re.findall(r"\d+", dims.group(1)))  # B N L M
        width = arrays_of(computation.type_of(instruction.operands[0]))[0].dims[-1]
        return 2.0 * _ATTENTION_PRODUCTS[_direction(target)] * logits * width, 0.0
    if target.startswith("__cublas$"):
        left = arrays_of(computation.type_of(instruction.operands[0]))[0]
        contracted = re.search(
            r'"lhs_contracting_dimensions": ?\[([^\]]*)\]', instruction.attributes
        )
        sums = math.prod(left.dims[int(n)] for n in re.findall(r"\d+", contracted.group(1)))
        flops = 2.0 * math.prod(arrays_of(instruction.type)[0].dims) * sums
        return (0.0, flops) if left.dtype in ("f32", "f64") else (flops, 0.0)
    if target.startswith("__cudnn$conv"):
        first, second = (
            arrays_of(computation.type_of(name))[0] for name in instruction.operands[:2]
        )
        third = arrays_of(instruction.type)[0]
        # Input, kernel and output of the forward pass, whose window and axes all three calls name.
        image, kernel, out = {
            "__cudnn$convBackwardInput": (third, second, first),
            "__cudnn$convBackwardFilter": (first, third, second),
        }.get(target, (first, second, third))
        flops = product_of_arrays(image, kernel, out, instruction).flops
        return (0.0, flops) if first.dtype in ("f32", "f64") else (flops, 0.0)
    return 0.0, 0.0


def _direction(target: str) -> str:
    return "backward" if target.endswith("Backward") else "forward"

"""Floating-point operations of HLO's matrix products. TPU programs write them as convolutions."""

import math
import re

from clip_jax.planning.hlo.text import Computation, Instruction, arrays_of


def dot_flops(instruction: Instruction, computation: Computation) -> float:
    """Two for every multiplication and addition."""
    out = arrays_of(instruction.type)[0]
    left = arrays_of(computation.type_of(instruction.operands[0]))[0]
    contracted = _numbers(instruction.rest, "lhs_contracting_dims")
    return 2.0 * math.prod(out.dims) * math.prod(left.dims[i] for i in contracted)


def convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Two for every multiplication and addition with a number that is there.

    A batched product becomes a convolution over a dilated input, most of whose products are with
    holes or padding; the compiler skips them, so they are not counted.
    """
    out = arrays_of(instruction.type)[0]
    left, right = (arrays_of(computation.type_of(name))[0] for name in instruction.operands[:2])
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
    assert labels, instruction.rest
    lhs, rhs, result = labels.groups()
    spatial = sorted(label for label in lhs if label.isdigit())
    window = _window(instruction.rest, len(spatial))
    products = 1
    for axis, label in enumerate(spatial):
        products *= _valid_products(
            size=left.dims[lhs.index(label)],
            kernel=right.dims[rhs.index(label)],
            out=out.dims[result.index(label)],
            **{name: values[axis] for name, values in window.items()},
        )
    batch = out.dims[result.index("b")]
    features = out.dims[result.index("f")]
    # The kernel's input features are those of one group already.
    return 2.0 * batch * features * right.dims[rhs.index("i")] * products


def _valid_products(
    *, size: int, kernel: int, out: int, stride: int, low: int, lhs_dilate: int, rhs_dilate: int
) -> int:
    """Pairs of an output position and a kernel position that meet a number of the input."""
    if kernel == 1 and stride == 1 and low == 0 and lhs_dilate == 1:
        return out
    span = (size - 1) * lhs_dilate
    count = 0
    for k in range(kernel):
        offset = k * rhs_dilate - low
        # Outputs o with 0 <= o * stride + offset <= span.
        first = max(0, math.ceil(-offset / stride))
        last = min(out - 1, (span - offset) // stride)
        if last < first:
            continue
        if lhs_dilate == 1:
            count += last - first + 1
        else:
            count += sum((o * stride + offset) % lhs_dilate == 0 for o in range(first, last + 1))
    return count


def _window(rest: str, axes: int) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", rest)
    parts = dict(part.split("=") for part in found.group(1).split()) if found else {}

    def values(name: str, default: int) -> list[int]:
        return [int(n) for n in parts[name].split("x")] if name in parts else [default] * axes

    low = (
        [int(pad.split("_")[0]) for pad in parts["pad"].split("x")]
        if "pad" in parts
        else [0] * axes
    )
    return {
        "stride": values("stride", 1),
        "low": low,
        "lhs_dilate": values("lhs_dilate", 1),
        "rhs_dilate": values("rhs_dilate", 1),
    }


def _numbers(rest: str, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", rest)
    return [int(n) for n in found.group(1).split(",") if n] if found else []

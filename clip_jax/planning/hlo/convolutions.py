"""Floating-point operations of HLO's matrix products. TPU programs write them as convolutions."""

import math
import re
from typing import NamedTuple

from clip_jax.planning.hlo.text import Array, Computation, Instruction, arrays_of


class Product(NamedTuple):
    """Products of a matrix of rows x depth by one of depth x columns, all of one size."""

    flops: float  # two for every multiplication and addition
    rows: int
    columns: int
    depth: int

    def padded_flops(self, unit: int) -> float:
        """What a matrix unit of `unit` x `unit` places works through.

        One factor stands in the unit, rounded up to it on both axes; the other passes by in rows of
        eight. Either may be the one that stands.
        """
        needed = self.rows * self.columns * self.depth
        if not needed:
            return self.flops
        stands = min(
            _up(self.rows, 8) * _up(self.columns, unit), _up(self.columns, 8) * _up(self.rows, unit)
        )
        return self.flops * stands * _up(self.depth, unit) / needed


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def product_of(instruction: Instruction, computation: Computation) -> Product:
    """Of a dot or a convolution."""
    read = dot_product if instruction.opcode == "dot" else convolution_product
    return read(instruction, computation)


def dot_product(instruction: Instruction, computation: Computation) -> Product:
    out = arrays_of(instruction.type)[0]
    left = arrays_of(computation.type_of(instruction.operands[0]))[0]
    depth = math.prod(
        left.dims[i] for i in _numbers(instruction.attributes, "lhs_contracting_dims")
    )
    batch = math.prod(left.dims[i] for i in _numbers(instruction.attributes, "lhs_batch_dims"))
    results = math.prod(out.dims)
    rows = math.prod(left.dims) // max(depth * batch, 1)
    return Product(2.0 * results * depth, rows, results // max(rows * batch, 1), depth)


def convolution_product(instruction: Instruction, computation: Computation) -> Product:
    """Of a convolution, as the matrix product that it is."""
    left, right = (arrays_of(computation.type_of(name))[0] for name in instruction.operands[:2])
    out = arrays_of(instruction.type)[0]
    return product_of_arrays(left, right, out, instruction)


def product_of_arrays(left: Array, right: Array, out: Array, convolution: Instruction) -> Product:
    """Of a convolution of `left` with the kernel `right`, which gives `out`.

    A batched product becomes a convolution over a dilated input, most of whose multiplications are
    with holes or padding; the compiler skips them, so they are not counted. An axis of the window
    that only one factor has, or that is summed over, is part of the rows, columns or depth.
    """
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", convolution.attribute("dim_labels"))
    assert labels, convolution.attributes
    lhs, rhs, result = labels.groups()
    spatial = sorted(label for label in lhs if label.isdigit())
    window = _window(convolution.attributes, len(spatial))
    rows, columns = out.dims[result.index("b")], out.dims[result.index("f")]
    depth = right.dims[rhs.index("i")]  # those of one group already
    flops = 2.0 * rows * columns * depth
    for axis, label in enumerate(spatial):
        size, kernel, places = (
            array.dims[names.index(label)]
            for array, names in ((left, lhs), (right, rhs), (out, result))
        )
        found = _valid_products(
            size=size, kernel=kernel, out=places,
            **{name: values[axis] for name, values in window.items()},
        )  # fmt: skip
        flops *= found
        if found == size == kernel == places:
            continue  # an axis of both factors and of the result: as many products apart
        if size == 1 and found == places:
            columns *= places
        else:
            rows, depth = rows * places, depth * kernel
    return Product(flops, rows, columns, depth)


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


def _window(attributes: str, axes: int) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
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


def _numbers(attributes: str, name: str) -> list[int]:
    found = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
    return [int(n) for n in found.group(1).split(",") if n] if found else []

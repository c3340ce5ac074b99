"""The text form of an HLO module as computations, instructions and array types."""

import functools
import math
import re
from collections import defaultdict
from typing import NamedTuple

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "bf16": 16}


class Array(NamedTuple):
    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool
    layout: str = ""  # minor to major and the tiles: "1,0:T(8,128)(2,1)"

    @property
    def bytes(self) -> int:
        """Of its elements alone."""
        return math.prod(self.dims) * self._bits // 8

    @property
    def tiled_bytes(self) -> int:
        """As it is stored: in whole tiles."""
        return stored_elements(self.dims, self.layout) * self._bits // 8

    @property
    def _bits(self) -> int:
        bits = _BITS.get(self.dtype)
        return int(re.search(r"\d+", self.dtype).group()) if bits is None else bits


@functools.lru_cache(maxsize=65_536)
def stored_elements(dims: tuple[int, ...], layout: str) -> int:
    """Elements that an array has room for, its axes rounded up to whole tiles.

    "1,0:T(8,128)(2,1)" names the axes from the minor one on, a tile of the most minor axes, and a
    tile inside of that tile; "*" as a tile's size joins an axis to the next minor one.
    """
    order, _, rest = layout.partition(":")
    physical = [dims[int(axis)] for axis in reversed(order.split(",")) if axis]
    tiles = re.search(r"T((?:\([\d,*]+\))+)", rest)
    for tile in re.findall(r"\(([\d,*]+)\)", tiles.group(1)) if tiles else ():
        sizes = tile.split(",")
        physical = [1] * (len(sizes) - len(physical)) + physical
        outer, inner, joined = [], [], 1
        for length, size in zip(physical[-len(sizes) :], sizes, strict=True):
            if size == "*":
                joined *= length
                continue
            outer.append(-(-joined * length // int(size)))
            inner.append(int(size))
            joined = 1
        physical = physical[: -len(sizes)] + outer + inner
    return math.prod(physical) if layout else math.prod(dims)


@functools.lru_cache(maxsize=65_536)
def arrays_of(type_text: str) -> tuple[Array, ...]:
    """The arrays of a type such as `(f32[8,4]{1,0}, s32[])`. S(1) marks a chip's own memory."""
    return tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), "S(" not in layout, layout)
        for dtype, dims, layout in _ARRAY.findall(type_text)
    )


def bytes_of(type_text: str, *, tiled: bool = False) -> int:
    """Bytes of the arrays that lie in HBM; `tiled`: as they are stored there."""
    arrays = (array for array in arrays_of(type_text) if array.in_hbm)
    return sum(array.tiled_bytes if tiled else array.bytes for array in arrays)


def elements_of(type_text: str) -> int:
    """Of all arrays, wherever they lie."""
    return sum(math.prod(array.dims) for array in arrays_of(type_text))


class Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands_text: str
    attributes: str  # and metadata
    is_root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.#-]+)", self.operands_text)

    @property
    def called(self) -> list[str]:
        """Computations of a fusion, call, loop or conditional."""
        found = re.findall(
            r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)", self.attributes
        )
        if branches := re.search(r"branch_computations=\{([^}]*)\}", self.attributes):
            found += re.findall(r"%?([\w.-]+)", branches.group(1))
        return found

    def attribute(self, name: str) -> str:
        """Of a single value without commas: `body`, `condition`, `calls`, `dim_labels`."""
        found = re.search(rf"\b{name}=%?([^,\s]+)", self.attributes)
        return found.group(1) if found else ""


class Computation:
    """A list of instructions with their names."""

    def __init__(self, name: str):
        self.name = name
        self.instructions: list[Instruction] = []

    @functools.cached_property
    def _by_name(self) -> dict[str, Instruction]:
        return {each.name: each for each in self.instructions}

    @functools.cached_property
    def _users(self) -> dict[str, list[Instruction]]:
        users = defaultdict(list)
        for each in self.instructions:
            for name in dict.fromkeys(each.operands):
                users[name].append(each)
        return users

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """By their place in a call."""
        found = (each for each in self.instructions if each.opcode == "parameter")
        return {int(each.operands_text): each for each in found}

    def type_of(self, name: str) -> str:
        """Of a value by its name, or by `name#1` of the second element of a tuple."""
        name, _, index = name.partition("#")
        found = self._by_name.get(name)
        if found is None:
            return ""
        return _elements(found.type)[int(index)] if index else found.type

    def users(self, name: str) -> list[Instruction]:
        return self._users.get(name, [])


class Module:
    """All computations of a module; `entry` is the program.

    Raises:
      ValueError: when the text holds no entry computation.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        entry, current = None, None
        for line in text.splitlines():
            if current is None:
                if head := _HEAD.match(line):
                    current = Computation(head.group(2))
                    self.computations[current.name] = current
                    entry = current if head.group(1) else entry
            elif line.startswith("}"):
                current = None
            elif " = " in line:
                current.instructions.append(_instruction(line))
        if entry is None:
            raise ValueError("this is no HLO module: it has no ENTRY computation")
        self.entry: Computation = entry


def _instruction(line: str) -> Instruction:
    left, right = line.strip().split(" = ", 1)
    right = re.sub(r"/\*index=\d+\*/", "", right)
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    type_text, call = right[:end], right[end:].lstrip()
    start = call.index("(")
    stop = _closing(call, start)
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        type=type_text,
        opcode=call[:start],
        operands_text=call[start + 1 : stop - 1],
        attributes=call[stop:],
        is_root=left.startswith("ROOT "),
    )


def _elements(tuple_type: str) -> list[str]:
    """The types that stand in `(f32[8,4]{1,0}, (s32[], f32[2]))`."""
    found, depth = [""], 0
    for character in tuple_type[1:-1]:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [each.strip() for each in found]


def _closing(text: str, start: int) -> int:
    """The place after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return len(text)

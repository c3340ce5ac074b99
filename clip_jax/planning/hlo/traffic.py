"""Bytes that an instruction of an optimized module moves between a chip and its memory."""

import re

from clip_jax.planning.hlo.text import (
    Computation,
    Instruction,
    Module,
    arrays_of,
    bytes_of,
    elements_of,
)

# They name a value and move nothing.
FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "async-update",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "domain",
    ]
)
# Custom calls that reserve memory, or tell the compiler something.
FREE_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding")
LIBRARIES = ("__cublas$", "__cudnn$")
# Their type names what they read as well as what they write.
NAMES_BOTH_ENDS = ("copy-start", "all-gather-start", "collective-permute-start")
# Of "output_to_operand_aliasing={{1}: (0, {}), {2}: (3, {})}" the operands.
_PASSED_ON = re.compile(r"\{\d*\}: \((\d+), \{\}\)")


def moved_bytes(
    module: Module, instruction: Instruction, computation: Computation, *, tiled: bool = False
) -> float:
    """What an instruction reads and what it writes; `tiled`: in whole tiles, as it is stored.

    A fusion that takes a slice of an operand reads the slice, and one that writes a slice into an
    operand in place writes the slice: so are the stacked parameters of a loop read and written.
    What a fusion only passes on costs nothing: the buffers of a collective that goes on meanwhile.
    """
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0.0
    if instruction.opcode == "custom-call" and target_of(instruction) in FREE_CALLS:
        return 0.0
    if instruction.opcode == "fusion":
        return _of_fusion(module, instruction, computation, tiled)
    written = bytes_of(instruction.type, tiled=tiled) - _workspace_bytes(instruction)
    if instruction.opcode in NAMES_BOTH_ENDS:
        return written
    types = [computation.type_of(name) for name in instruction.operands]
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        indices = sum(bytes_of(each, tiled=tiled) for each in types[1:])
        return _part(types[0], instruction.type, tiled) + indices + written
    if instruction.opcode == "dynamic-update-slice":
        return bytes_of(types[1], tiled=tiled) + _part(instruction.type, types[1], tiled)
    return sum(bytes_of(each, tiled=tiled) for each in types) + written


def _workspace_bytes(instruction: Instruction) -> int:
    """Room that a GPU's library is given beside its result: (bf16[64,32]{1,0}, s8[4194304]{0})."""
    if instruction.opcode != "custom-call" or not target_of(instruction).startswith(LIBRARIES):
        return 0
    room = (array for array in arrays_of(instruction.type)[1:] if array.dtype in ("s8", "u8"))
    return sum(array.bytes for array in room if len(array.dims) == 1)


def target_of(instruction: Instruction) -> str:
    """The name of what a custom call calls."""
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return found.group(1) if found else ""


def _part(whole: str, part: str, tiled: bool) -> float:
    """Bytes in HBM of an array that is as large as `part` and lies where `whole` lies."""
    size = elements_of(whole)
    return bytes_of(whole, tiled=tiled) * elements_of(part) / size if size else 0.0


def _of_fusion(module: Module, fusion: Instruction, computation: Computation, tiled: bool) -> float:
    inner = module.computations[fusion.attribute("calls")]
    passed_on = {int(index) for index in _PASSED_ON.findall(fusion.attributes)}
    read, in_place = 0.0, 0.0
    for index, name in enumerate(fusion.operands):
        whole = bytes_of(computation.type_of(name), tiled=tiled)
        if index in passed_on:
            in_place += whole
            continue
        share, kept = _shares(module, inner, index)
        read += whole * share
        in_place += whole * kept
    # What is written in place is as large as what is not read of it.
    return read + max(bytes_of(fusion.type, tiled=tiled) - in_place, 0.0)


def _shares(module: Module, inner: Computation, index: int) -> tuple[float, float]:
    """The share of a fusion's operand that it reads, and the share that it leaves as it is."""
    parameter = inner.parameters.get(index)
    size = elements_of(parameter.type) if parameter else 0
    if not size:
        return 1.0, 0.0
    read, kept, escapes = _elements_used(module, inner, parameter)
    if escapes:  # it is the result
        return 1.0, 0.0
    return min(read / size, 1.0), min(kept / size, 1.0)


def _elements_used(
    module: Module, inner: Computation, parameter: Instruction
) -> tuple[float, float, bool]:
    """Elements of a parameter that are read, those left as they are, and whether it is the result.

    Fusions hold fusions, which may be what takes the slice, or only give the array another name.
    """
    size = elements_of(parameter.type)
    read, kept, escapes = 0.0, 0.0, False
    pending = [parameter]
    while pending:
        value = pending.pop()
        escapes |= value.is_root
        for user in inner.users(value.name):
            first = user.operands[0] == value.name and value.name not in user.operands[1:]
            if user.opcode in ("bitcast", "reshape"):
                pending.append(user)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
                read += elements_of(user.type)
            elif user.opcode == "dynamic-update-slice" and first:
                kept += size - elements_of(inner.type_of(user.operands[1]))
            elif user.opcode == "fusion":
                called = module.computations[user.attribute("calls")]
                for place, operand in enumerate(user.operands):
                    if operand == value.name:
                        nested = _elements_used(module, called, called.parameters[place])
                        read, kept = read + nested[0], kept + nested[1]
                        if nested[2]:
                            pending.append(user)
            else:
                return size, 0.0, False
    return read, kept, escapes

"""Compiles a train step with libtpu for devices that are not here, and keeps what that tells."""

import importlib.util
import os
import re
from dataclasses import dataclass

import jax

from clip_jax.hardware import silence_absent_tpus
from clip_jax.planning.hlo.dump import compile_with_dump
from clip_jax.planning.hlo.module import Program, read_program
from clip_jax.planning.steps import Step
from clip_jax.planning.topologies import first_line

GIB = 2**30
# It says "the total memory required for HLO temporaries (27.69G) exceeds available HBM (15.75G)".
_REFUSED = re.compile(r"\(?([\d.]+)([KMGT])i?B?\)? (?:exceeds available HBM|of) \(?([\d.]+)G")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Refused:
    """The compiler found that the program needs more memory than a device has."""

    needed_bytes: float
    available_bytes: float


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device."""

    peak_bytes: int  # most memory in use at once
    argument_bytes: int  # state and batch
    temporary_bytes: int
    program: Program

    @classmethod
    def of(cls, compiled: jax.stages.Compiled, program: Program) -> "Compiled":
        """From a compiled program and what was read from its text."""
        memory = compiled.memory_analysis()
        return cls(
            peak_bytes=memory.peak_memory_in_bytes,
            argument_bytes=memory.argument_size_in_bytes,
            temporary_bytes=memory.temp_size_in_bytes,
            program=program,
        )


def require_libtpu():
    """Find libtpu and let it start without a TPU, in silence.

    Raises:
      ValueError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "a plan for TPUs needs their compiler, which is not installed: "
            "pip install -e '.[plan]' in the clone of clip_jax"
        )
    # It would ask Google's metadata server for a TPU and lock itself for this process.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    silence_absent_tpus()


def compile_step(step: Step) -> Compiled | Refused:
    """Compile a step for the devices of its mesh, which are TPUs that need not be there."""
    return compile_lowered(step.lower())


def compile_lowered(lowered: jax.stages.Lowered) -> Compiled | Refused:
    """Compile any program likewise."""
    try:
        # The program's own as_text() fails on some chips, so it is read from the compiler's dump.
        with compile_with_dump(lowered) as (compiled, folder):
            (path,) = folder.glob("*after_codegen.txt")
            program = read_program(path.read_text())
    except jax.errors.JaxRuntimeError as error:
        refused = read_refusal(str(error))
        if refused is None:
            raise compiler_error(error, "libtpu") from error
        return refused
    return Compiled.of(compiled, program)


def compiler_error(error: Exception, compiler: str) -> ValueError:
    """A failure of the compiler itself, in one line with what may avoid it."""
    return ValueError(
        f"{compiler} cannot compile this step ({first_line(error)}): another model.attention, "
        "model.remat or data.batch_size may pass"
    )


def read_refusal(message: str) -> Refused | None:
    """What was needed and what there is, from the compiler's error; None for any other error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = _REFUSED.search(message)
    if found is None:
        return None
    needed, unit, available = found.groups()
    return Refused(float(needed) * _UNITS[unit], float(available) * GIB)

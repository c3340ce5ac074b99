"""Compiles a train step with XLA for NVIDIA GPUs that are not here, and keeps what that tells."""

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
from jax._src.cudnn import fused_attention_stablehlo

from clip_jax.hardware import traced_for
from clip_jax.planning.compiler import Compiled, compiler_error
from clip_jax.planning.gpu_targets import target_config
from clip_jax.planning.hlo.module import read_program
from clip_jax.planning.steps import Step
from clip_jax.planning.topologies import Topology

PLUGINS = ("xla_cuda12", "xla_cuda13")  # of JAX
CUDNN_VERSION = 91_000  # as `gpu_targets` has it
NO_TILES = "Couldn't find output tile sizes"
_tracing = threading.Lock()  # steps are compiled in several threads, and `absent_gpu` is for all


def is_installed() -> bool:
    """Whether JAX's CUDA plugin, which holds the compiler, is there; it needs no GPU to compile."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{name}") for name in PLUGINS)


def compile_only_devices(topology: Topology) -> list[Any]:
    """Devices that the compiler accepts, on a machine that has none.

    Raises:
      ValueError: JAX looked for GPUs before, which ends in an error where there are none.
    """
    from jax.experimental import topologies  # loads the plugin when it is called

    shape = f"1x{topology.slices}x{topology.shape[0]}"  # machines x GPUs of each
    try:
        found = topologies.get_topology_desc(
            topology.chip.name, "cuda", target_config=target_config(topology.chip), topology=shape
        )
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"--topology {topology.name}: XLA's compiler for GPUs did not start ({error}): "
            "set JAX_PLATFORMS=cpu before the start"
        ) from error
    return list(found.devices)


@contextlib.contextmanager
def absent_gpu(device: Any) -> Iterator[None]:
    """Trace for a GPU that is not there.

    JAX's own checks of cuDNN attention ask a live GPU for its capability and for cuDNN's version.
    They get those of `device`; what they check of types and shapes stays as it is.
    """
    capability = tuple(int(part) for part in device.compute_capability.split("."))

    def read(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split("."))

    answers = {
        "check_cudnn_version": lambda: CUDNN_VERSION,
        "check_compute_capability": lambda wanted: capability >= read(wanted),
        "is_cuda_compute_capability_equal": lambda wanted: capability == read(wanted),
    }
    with (
        _tracing,
        mock.patch.multiple(fused_attention_stablehlo, **answers),
        traced_for(device),
    ):
        yield


def compile_for_gpus(step: Step) -> Compiled:
    """Compile a step for the devices of its mesh, which are GPUs that need not be there."""
    with absent_gpu(step.mesh.devices.flat[0]):
        lowered = step.lower()
    compiled = _compile(lowered)
    return Compiled.of(compiled, read_program(compiled.as_text()))


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """With cuBLAS for all products where Triton has no tiles for one of them.

    On a real GPU XLA times both and drops what does not compile; without one it takes Triton, and
    fails, mostly of float32 (jax 0.10.2).
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if NO_TILES not in str(error):
            raise compiler_error(error, "XLA") from error
        return lowered.compile(compiler_options={"xla_gpu_enable_triton_gemm": False})

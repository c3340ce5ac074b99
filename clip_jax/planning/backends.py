"""Ways to try a step without its devices: libtpu's verdict, XLA's for GPUs, or an estimate."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from clip_jax.config import TrainConfig
from clip_jax.planning import gpu_compiler, memory
from clip_jax.planning.compiler import GIB, Refused, compile_step, require_libtpu
from clip_jax.planning.gpu_targets import AbsentGpu
from clip_jax.planning.hlo.module import Program
from clip_jax.planning.hlo.partitioned import compile_for_text, read_partitioned, update_work
from clip_jax.planning.steps import Step, make_step
from clip_jax.planning.topologies import Topology

MOST_CPU_DEVICES = 1024
COMPILED = {
    "tpu": "compiled by libtpu for these chips",
    "gpu": "compiled by XLA for these GPUs, but for its choice of products and tiles, which are "
    "timed on a real one, and for cuDNN's workspace",
}
ESTIMATE = (
    "ESTIMATE: memory from shapes, the program from a CPU's partitioner, no GPU compiler. Compiled "
    "figures need JAX's CUDA plugin, and no GPU: pip install -e '.[plan-gpu]'"
)
JAX_SHARE = 0.75  # of a GPU's memory that JAX takes where XLA_PYTHON_CLIENT_MEM_FRACTION is not set


@dataclass(frozen=True)
class Trial:
    """What became of a step on a topology: bytes are of one device."""

    step: Step
    needed_bytes: float
    available_bytes: float
    estimated_bytes: float  # from shapes alone
    program: Program | None  # None: the compiler refused it, or it was not read
    source: str  # of the figures

    @property
    def fits(self) -> bool:
        return self.needed_bytes <= self.available_bytes


def is_compiled(topology: Topology) -> bool:
    """Whether the compiler of these devices is here; else a step is estimated."""
    return topology.chip.kind == "tpu" or gpu_compiler.is_installed()


def devices_of(topology: Topology) -> Sequence[Any]:
    """Devices that stand for those of the topology.

    Raises:
      ValueError: libtpu is not installed, a compiler does not start, or CPU devices stand for
        GPUs and JAX has started with fewer.
    """
    if topology.chip.kind == "tpu":
        require_libtpu()
        return topology.compile_only_devices()
    if is_compiled(topology):
        return gpu_compiler.compile_only_devices(topology)
    devices = jax.devices("cpu")
    if topology.devices > len(devices):
        raise ValueError(
            f"--topology {topology.name}: {topology.devices} devices are wanted and JAX was "
            f"started with {len(devices)} CPU devices to stand for them: start again with "
            f"JAX_NUM_CPU_DEVICES={topology.devices}"
        )
    return devices[: topology.devices]


def start(topologies: Sequence[Topology]):
    """Let JAX have enough CPU devices and touch no accelerator; before it looks for devices."""
    wanted = max([t.devices for t in topologies if not is_compiled(t)], default=1)
    if wanted > MOST_CPU_DEVICES:
        raise ValueError(f"at most {MOST_CPU_DEVICES} GPUs can be estimated, not {wanted}")
    if any(t.chip.kind == "tpu" for t in topologies):
        require_libtpu()
    jax.config.update("jax_platforms", "cpu")
    if wanted == 1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError:
        return  # JAX runs already; `devices_of` sees whether it has enough


def try_step(
    cfg: TrainConfig, topology: Topology, *, gpu_share: float = JAX_SHARE, read: bool = True
) -> Trial:
    """Compile a run's step for a topology.

    Args:
      cfg: the run.
      topology: where it is to go.
      gpu_share: of a GPU's memory that JAX may use.
      read: take the program too. The estimate of a GPU's memory needs none.

    Raises:
      ValueError: settings that contradict each other or the topology.
    """
    step = make_step(cfg, devices_of(topology))
    kind = topology.chip.kind
    if not is_compiled(topology):
        return _estimated(step, topology, gpu_share, read)
    estimated = estimated_bytes(step, topology)
    found = compile_step(step) if kind == "tpu" else gpu_compiler.compile_for_gpus(step)
    if isinstance(found, Refused):
        return Trial(
            step, found.needed_bytes, found.available_bytes, estimated, None, COMPILED[kind]
        )
    available = available_bytes(topology, gpu_share=gpu_share)
    return Trial(step, found.peak_bytes, available, estimated, found.program, COMPILED[kind])


def available_bytes(topology: Topology, *, gpu_share: float = JAX_SHARE) -> float:
    """Memory of a device that a program may use."""
    chip = topology.chip
    return chip.usable_gib * GIB if chip.kind == "tpu" else chip.memory_bytes * gpu_share


def estimated_bytes(step: Step, topology: Topology, *, batch_size: int | None = None) -> float:
    """What a step would need, from shapes alone, with its own batch or another."""
    device = target_of(topology, step.mesh.devices.flat[0])
    return memory.estimate(step, batch_size=batch_size, device=device).peak


def _estimated(step: Step, topology: Topology, gpu_share: float, read: bool) -> Trial:
    needed = estimated_bytes(step, topology)
    available = available_bytes(topology, gpu_share=gpu_share)
    program = None
    if read and needed <= available:
        text = compile_for_text(step.lower())
        program = read_partitioned(text, fused_attention=_is_fused(step, topology))
        state = memory.parameter_bytes(step), memory.optimizer_bytes(step)
        program.work.append(update_work(*state))
    return Trial(step, needed, available, needed, program, ESTIMATE)


def _is_fused(step: Step, topology: Topology) -> bool:
    """Whether all towers' attention is a GPU's kernel, which takes any length."""
    device, any_length = target_of(topology, step.mesh.devices.flat[0]), 64
    towers = (tower for tower in step.config.towers.values() if tower.depth)
    return all(memory.logits_of(step, each, device)(any_length) == "fused" for each in towers)


def target_of(topology: Topology, device: Any) -> Any:
    """What a device of a topology is, also where a CPU's stands for it."""
    if topology.chip.kind == "gpu" and not is_compiled(topology):
        return AbsentGpu.of(topology.chip)
    return device

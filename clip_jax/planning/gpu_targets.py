"""GPUs as XLA's compiler describes them, so that it compiles for one that is not there."""

from dataclasses import dataclass
from typing import Any

from clip_jax.hardware import Chip

# Makers' data sheets, and what `xla_dump_to` writes on such a machine (*.gpu_target_config.pbtxt).
# An SM has 65,536 registers and runs blocks of up to 1,024 threads in all of them.
_TARGETS: dict[str, dict[str, Any]] = {
    "a100-40gb": {"capability": 8, "cores": 108, "fpus": 64, "shared_kib": 164, "l2_mib": 40,
                  "ghz": 1.41, "described": "NVIDIA A100-SXM4-40GB"},
    "a100": {"capability": 8, "cores": 108, "fpus": 64, "shared_kib": 164, "l2_mib": 40,
             "ghz": 1.41, "described": "NVIDIA A100-SXM4-80GB"},
    "h100": {"capability": 9, "cores": 132, "fpus": 128, "shared_kib": 228, "l2_mib": 50,
             "ghz": 1.98, "described": "NVIDIA H100 80GB HBM3"},
    "h200": {"capability": 9, "cores": 132, "fpus": 128, "shared_kib": 228, "l2_mib": 50,
             "ghz": 1.98, "described": "NVIDIA H200"},
    "b200": {"capability": 10, "cores": 148, "fpus": 128, "shared_kib": 228, "l2_mib": 126,
             "ghz": 1.965, "described": "NVIDIA B200"},
}  # fmt: skip


@dataclass(frozen=True)
class AbsentGpu:
    """What the choice of an attention asks of a GPU, where CPU devices stand for it."""

    device_kind: str
    compute_capability: str
    platform: str = "gpu"

    @classmethod
    def of(cls, chip: Chip) -> "AbsentGpu":
        target = _TARGETS[chip.name]
        return cls(target["described"], f"{target['capability']}.0")


def target_config(chip: Chip) -> str:
    """A `GpuTargetConfigProto` in text. Without the versions of cuDNN and CUDA XLA refuses it."""
    target = _TARGETS[chip.name]
    shared = target["shared_kib"] * 1024
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  threads_per_core_limit: 2048
  core_count: {target["cores"]}
  fpus_per_core: {target["fpus"]}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.memory_gbps * 1e9)}
  l2_cache_size: {target["l2_mib"] * 2**20}
  clock_rate_ghz: {target["ghz"]}
  device_memory_size: {chip.memory_bytes}
  cuda_compute_capability {{ major: {target["capability"]} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{target["described"]}"
"""

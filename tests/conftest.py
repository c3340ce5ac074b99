"""Eight CPU devices, and meshes of them. JAX reads these settings when it is imported."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight devices on two cores that others use too may come to a collective very late: XLA's own limit
# of 40 s then ends the process.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "--xla_cpu_collective_timeout_seconds=600",
    )
)
os.environ["NPROC"] = "64"  # as clip_jax.chips.let_cpu_devices_wait does, before JAX is imported

import jax
import pytest
from jax.sharding import AxisType


@pytest.fixture
def mesh():
    """`mesh(4, 2)`: four devices along "data" times two along "fsdp"."""

    def make(data: int = 1, fsdp: int = 1) -> jax.sharding.Mesh:
        devices = jax.devices()[: data * fsdp]
        return jax.make_mesh(
            (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
        )

    return make

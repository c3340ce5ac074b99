"""What accelerators can do at most, by the names that JAX gives them: the denominators of MFU."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

GIB, GB = 2**30, 10**9
TPU_DOCS = "https://docs.cloud.google.com/tpu/docs/"
NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A maker's figures of one chip."""

    name: str  # as in `CHIPS`
    label: str  # as people write it
    kind: Literal["tpu", "gpu"]
    devices_named: str  # a regular expression that the whole of `device_kind` matches
    tflops: float  # 10^12 floating-point operations a second, dense, of bfloat16 factors
    float32_tflops: float  # of exact products of float32
    memory_bytes: int
    memory_gbps: float  # 10^9 bytes a second
    link_gbps: float  # 10^9 bytes a second of one link, one way; of a GPU's links together
    links: int  # of a chip to others: two an axis of a torus
    network_gbps: float  # 10^9 bytes a second of a chip's share of the network between machines
    usable_gib: float | None = None  # of a device, as libtpu 0.0.52 says; None: not known
    devices: int = 1  # JAX devices that one chip shows as
    host_chips: int  # of a machine, where a slice has many
    matrix_unit: int | None = None  # rows and columns of one, to which products are filled up
    clock_ghz: float | None = None  # None: no maker's figure is known
    source: str

    @property
    def peak_flops(self) -> float:
        """Floating-point operations a second of the chip, at most."""
        return self.tflops * 1e12

    @property
    def device_flops(self) -> float:
        """The same of one JAX device."""
        return self.peak_flops / self.devices


def _tpu(name: str, devices_named: str, page: str, **figures) -> Chip:
    label = "TPU " + name if name.startswith("v") else name.upper().replace("X", "x")
    source = TPU_DOCS + page
    # A factor in float32 is the sum of three in bfloat16, so an exact product takes six passes.
    figures = {"matrix_unit": 128, "float32_tflops": figures["tflops"] / 6} | figures
    return Chip(name=name, label=label, kind="tpu", devices_named=devices_named, source=source,
                host_chips=4, **figures)  # fmt: skip


def _gpu(name: str, devices_named: str, page: str, **figures) -> Chip:
    """The SXM form, and its dense figures: those with sparsity are twice as high."""
    return Chip(name=name, label=name.upper(), kind="gpu", devices_named=devices_named,
                source=NVIDIA + page, links=1, host_chips=8, **figures)  # fmt: skip


# A clock is the one at which a chip's matrix units reach its peak (v3 and v4: as in arXiv:2304.01433);
# v6e's and TPU7x's units do more a cycle than is published. The units' sizes are those of JAX's
# jax/_src/pallas/mosaic/tpu_info.py. A link's speed is the maker's total of a chip by its links and
# both ways; v3's and v4's are from https://jax-ml.github.io/scaling-book/tpus. The network between
# slices is Google's figure of v5e (6.4 Tbit/s a pod), v5p (50 Gbit/s a chip) and TPU7x (100 Gbit/s a
# chip); v3, v4 and v6e are taken to be like v5e, v5p and TPU7x. GPU machines are taken to have one
# network card of 200 (A100) or 400 Gbit/s a GPU.
_ALL = (
    _tpu("v3", "TPU v3", "v3", tflops=123, memory_bytes=32 * GIB, memory_gbps=900,
         link_gbps=100, links=4, network_gbps=3.125, usable_gib=15.48, devices=2,
         clock_ghz=0.94),
    _tpu("v4", "TPU v4", "v4", tflops=275, memory_bytes=32 * GIB, memory_gbps=1200,
         link_gbps=45, links=6, network_gbps=6.25, usable_gib=30.75,
         clock_ghz=1.05),
    _tpu("v5e", "TPU v5( lite|e)", "v5e", tflops=197, memory_bytes=16 * GIB, memory_gbps=819,
         link_gbps=50, links=4, network_gbps=3.125, usable_gib=15.75,
         clock_ghz=1.5),
    _tpu("v5p", "TPU v5p?", "v5p", tflops=459, memory_bytes=95 * GIB, memory_gbps=2765,
         link_gbps=100, links=6, network_gbps=6.25, usable_gib=95.73,
         clock_ghz=1.75),
    _tpu("v6e", "TPU v6( lite|e)", "v6e", tflops=918, memory_bytes=32 * GIB, memory_gbps=1638,
         link_gbps=100, links=4, network_gbps=12.5, usable_gib=31.24,
         matrix_unit=256),
    _tpu("tpu7x", "TPU7x?", "tpu7x", tflops=2307, memory_bytes=192 * GIB, memory_gbps=7380,
         link_gbps=100, links=6, network_gbps=12.5, usable_gib=94.74, devices=2,
         matrix_unit=256),
    _gpu("a100-40gb", "NVIDIA A100.*40GB.*", "a100", tflops=312, float32_tflops=19.5,
         memory_bytes=40 * GB, memory_gbps=1555, link_gbps=300, network_gbps=25),
    _gpu("a100", "NVIDIA A100.*", "a100", tflops=312, float32_tflops=19.5,
         memory_bytes=80 * GB, memory_gbps=2039, link_gbps=300, network_gbps=25),
    _gpu("h100", "NVIDIA H100.*(HBM3|SXM).*", "h100", tflops=989, float32_tflops=67,
         memory_bytes=80 * GB, memory_gbps=3350, link_gbps=450, network_gbps=50),
    _gpu("h200", "NVIDIA H200(?! NVL).*", "h200", tflops=989, float32_tflops=67,
         memory_bytes=141 * GB, memory_gbps=4800, link_gbps=450, network_gbps=50),
    _gpu("b200", "NVIDIA B200.*", "hgx", tflops=2250, float32_tflops=75,
         memory_bytes=180 * GB, memory_gbps=8000, link_gbps=900, network_gbps=50),
)  # fmt: skip
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ALL}


@functools.lru_cache
def chip_of(device_kind: str) -> Chip | None:
    """The chip that a JAX device is, or is a half of; None where the peak is not known (any CPU)."""
    matching = (chip for chip in _ALL if re.fullmatch(chip.devices_named, device_kind))
    return next(matching, None)


class Anywhere(NamedTuple):
    """Stands for all devices at once: computations take the forms that each of them knows."""

    platform: str = "cpu"
    device_kind: str = "cpu"


_target: ContextVar[Any] = ContextVar("target", default=None)


def target_device() -> Any:
    """The device that is to run what is traced now: JAX's first one, unless `traced_for` names it."""
    return _target.get() or jax.devices()[0]


@contextlib.contextmanager
def traced_for(device: Any) -> Iterator[None]:
    """Choose the forms of computations for this device. What is compiled ahead of time needs it.

    JAX's caches of traces know nothing of it: make the function that is traced again.
    """
    token = _target.set(device)
    try:
        yield
    finally:
        _target.reset(token)


def silence_absent_tpus():
    """Keep libtpu, where it is installed to plan with, from warning that there is no TPU.

    JAX loads it when it looks for devices. It has looked for the chips themselves by then, when it
    was imported, and told libtpu with a variable not to ask Google's servers for them.
    """
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def let_cpu_devices_wait(processes: int = 1):
    """Give CPU devices, several in one process or in several, threads to wait for each other in.

    XLA's pool has a thread a core or a device, and a collective that waits holds one. Devices that
    come to two collectives in different orders, which nothing forbids, would wait for ever (seen
    with jax 0.10.2 on eight devices). A step that gathers 38 parameters along fsdp may wait in all
    of them at once. The pool's size is read from NPROC when the devices are made.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    forced = re.search(r"--xla_force_host_platform_device_count=(\d+)", flags)
    devices = int(forced[1] if forced else os.environ.get("JAX_NUM_CPU_DEVICES") or 1)
    if devices > 1 or (processes > 1 and os.environ.get("JAX_PLATFORMS") == "cpu"):
        os.environ.setdefault("NPROC", str(64 * max(devices, 2)))

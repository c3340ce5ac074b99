"""Eight CPU devices, meshes of them, and an end for what hangs."""

import faulthandler
import gc
import os
import threading
from pathlib import Path

# JAX reads these settings when it is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
# Arrays of different ranks are never combined in silence, in processes that tests start as well.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Tests run tiny programs once: optimizing them takes longer than running them as they are.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Processes that tests start would each compile all of our modules to bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Eight devices on two cores that others use too may come to a collective very late: XLA's own limit
# of 40 s then ends the process.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120",
        "--xla_cpu_collective_call_terminate_timeout_seconds=3600",
        "--xla_cpu_collective_timeout_seconds=3600",
    )
)
# As clip_jax.hardware.let_cpu_devices_wait does, but for ten losses in one program on eight devices.
os.environ["NPROC"] = "1024"

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from clip_jax.storage import user_cache

# A process of tests holds millions of objects, of programs for the most part: the collector's usual
# thresholds take a tenth of all time.
gc.set_threshold(50_000, 20, 20)

# The code of the fusion emitters is faster, and takes three times as long to compile. The flag is
# read here, and gone before libtpu reads the variable, which ends a process for flags it lacks.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_cpu_use_fusion_emitters=false")
    jax.devices()

TESTS = Path(__file__).parent
LIMIT_S = 600  # the slowest test takes a minute and a half on two busy cores


@pytest.fixture
def mesh():
    """`mesh(4, 2)`: four devices along "data" times two along "fsdp"."""

    def make(data: int = 1, fsdp: int = 1) -> jax.sharding.Mesh:
        devices = jax.devices()[: data * fsdp]
        return jax.make_mesh(
            (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
        )

    return make


@pytest.fixture(scope="session")
def write_pairs():
    """`write_pairs(folder, 48)` writes images of noise and captions.csv, and gives that file's path."""

    def write(folder: Path, count: int) -> Path:
        rng = np.random.default_rng(0)
        lines = ["image,caption"]
        for number in range(count):
            pixels_HWC = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels_HWC).save(folder / f"{number}.png")
            lines.append(f"{number}.png,thing number {number} of {number % 5}")
        (folder / "captions.csv").write_text("\n".join(lines))
        return folder / "captions.csv"

    return write


@pytest.fixture(scope="session")
def program_cache() -> Path:
    """Where processes that tests start keep what they compile, for other tests and later sessions."""
    return user_cache() / "tests"


@pytest.fixture(scope="module")
def optimized():
    """Programs are compiled as those of a run, for what is read from their compilers."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def programs(program_cache):
    """All commands of a module share it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_JAX_TEST_CACHE", str(program_cache))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """First the files whose tests wait for processes: the last ones are then short."""
    waiting = ("distributed", "end_to_end", "launch")
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in waiting)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """End this process, with all its stacks, when a test hangs.

    A limit by the clock would also end what was well when the whole machine stood still for a while.
    So seconds are counted one by one, and a pause counts as one of them.
    """
    done = threading.Event()

    def watch():
        for _ in range(LIMIT_S):
            if done.wait(1):
                return
        item.config.pluginmanager.getplugin("capturemanager").suspend_global_capture()
        os.write(2, f"\n{item.nodeid} hangs:\n".encode())
        faulthandler.dump_traceback(2)
        os._exit(1)

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        return (yield)
    finally:
        done.set()

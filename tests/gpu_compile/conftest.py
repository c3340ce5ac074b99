"""These tests take three hours of processor time, and JAX's CUDA plugin: they run when they are asked for."""

from pathlib import Path

import pytest

from clip_jax.config import DataConfig, ModelSettings, TrainConfig
from clip_jax.planning import gpu_compiler
from clip_jax.planning.backends import devices_of
from clip_jax.planning.compiler import Compiled
from clip_jax.planning.steps import make_step
from clip_jax.planning.topologies import parse_topology


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked = any("gpu_compile" in argument for argument in config.args)
    return None if asked and gpu_compiler.is_installed() else True


@pytest.fixture(scope="module", autouse=True)
def compiled_as_in_a_run(optimized):
    """Its programs are optimized, as no others of the tests are."""


@pytest.fixture(scope="session")
def compile_for():
    """`compile_for("h100:8", batch_size=64, name=..., loss=...)`: the train step, compiled."""

    def compiled(topology: str, *, batch_size: int, name: str, dtype="bfloat16", **run) -> Compiled:
        accumulation = run.pop("accumulation", 1)
        model = {key: run.pop(key) for key in ("remat", "freeze") if key in run}
        cfg = TrainConfig(
            model=ModelSettings(name=name, dtype=dtype, **model),
            data=DataConfig(batch_size=batch_size, accumulation=accumulation),
            **run,
        )
        step = make_step(cfg, devices_of(parse_topology(topology)))
        return gpu_compiler.compile_for_gpus(step)

    return compiled
